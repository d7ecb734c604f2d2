"""Chat templates written for the tests, in the manner of those of models that call tools and think.

Each differs from the others in what a program has to find out: how it takes arguments, contents beside a call, ids and thoughts,
what ends a call, where tools stand, and which thoughts of earlier answers it drops.
"""

from __future__ import annotations

CONTROL = {
    "hermes": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "llama": ["<|bos|>", "<|head|>", "<|/head|>", "<|eot|>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]", "[TOOLS]", "[/TOOLS]", "[CALLS]", "[RESULTS]", "[/RESULTS]"],
    "deepseek": ["<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", "<|calls|>", "<|call|>", "<|sep|>", "<|out|>"],
    "harmony": ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"],
    "granite": ["<|role|>", "<|/role|>", "<|end_of_text|>", "<|tool_call|>"],
}
ADDED = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
"""Added tokens that are no control tokens, in every vocabulary."""

_CHATML_TOOLS = (
    "{%- if tools %}{{ '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\\n\\n' }}{%- endif %}"
    "{{ '# Tools\\n<tools>' }}{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{%- endfor %}{{ '\\n</tools><|im_end|>\\n' }}"
    "{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
)
_CHATML_CALLS = (
    "{%- for call in m.tool_calls or [] %}{%- if not loop.first or content %}{{ '\\n' }}{%- endif %}"
    '{{ \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}{{ call.function.arguments | tojson }}'
    "{{ '}\\n</tool_call>' }}{%- endfor %}"
)
_CHATML_RESULT = (
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{%- endif %}"
    "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{%- endif %}"
)
_CHATML_PROMPT = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"

HERMES = (
    _CHATML_TOOLS + "{%- for m in messages %}{%- set content = m.content or '' %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + content }}"
    + _CHATML_CALLS
    + "{{ '<|im_end|>\\n' }}{%- elif m.role == 'tool' %}"
    + _CHATML_RESULT
    + "{%- endif %}{%- endfor %}"
    + _CHATML_PROMPT
)
"""Arguments as an object; a thought is part of the text."""

QWEN3 = (
    _CHATML_TOOLS + "{%- set ns = namespace(last=-1) %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content or '' %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{%- set thought = m.reasoning_content or '' %}{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}{%- else %}{{ content }}{%- endif %}"
    + _CHATML_CALLS
    + "{{ '<|im_end|>\\n' }}{%- elif m.role == 'tool' %}"
    + _CHATML_RESULT
    + "{%- endif %}{%- endfor %}"
    + _CHATML_PROMPT
)
"""Thoughts before the last question of the user's are dropped; the last answer has a thought, be it empty."""

LLAMA = (
    "{{ '<|bos|>' }}{%- if tools %}{{ '<|head|>system<|/head|>\\n\\nEnvironment: ipython<|eot|>' }}{%- endif %}"
    "{%- set ns = namespace(told=false) %}{%- for m in messages %}"
    "{%- if 'tool_calls' in m %}{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{%- endif %}"
    "{%- if m.content %}{{ raise_exception('a call beside a text') }}{%- endif %}"
    '{{ \'<|head|>assistant<|/head|>\\n\\n{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eot|>' }}"
    "{%- elif m.role == 'tool' %}{{ '<|head|>ipython<|/head|>\\n\\n' + (m.content | tojson) + '<|eot|>' }}"
    "{%- else %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' }}{%- if m.role == 'user' and tools and not ns.told %}"
    "{%- set ns.told = true %}{%- for tool in tools %}{{ (tool | tojson(indent=4)) + '\\n\\n' }}{%- endfor %}{%- endif %}"
    "{{ (m.content | trim) + '<|eot|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}"
)
"""Tools stand in the first question, results are JSON texts, a call stands alone."""

MISTRAL = (
    "{{ '<s>' }}{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- if tools and m == asked[-1] %}{{ '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{%- elif m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{%- elif m.tool_calls %}{{ m.content or '' }}{{ '[CALLS][' }}{%- for call in m.tool_calls %}{%- if call.id | length != 9 %}"
    "{{ raise_exception('ids have 9 characters') }}{%- endif %}{%- set f = call.function | tojson %}"
    "{{ f[:-1] + ', \"id\": \"' + call.id + '\"}' }}{{ ', ' if not loop.last else ']</s>' }}{%- endfor %}"
    "{%- elif m.role == 'tool' %}{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{%- endif %}"
    "{{ '[RESULTS]{\"content\": ' + (m.content | tojson) + ', \"call_id\": \"' + m.tool_call_id + '\"}[/RESULTS]' }}"
    "{%- else %}{{ m.content + '</s>' }}{%- endif %}{%- endfor %}"
)
"""Tools move to the last question; ids have nine characters."""

DEEPSEEK = (
    "{{ '<|begin|>' }}{%- for m in messages %}{%- if m.role == 'system' %}{{ m.content }}{%- endif %}{%- endfor %}"
    "{%- if tools %}{{ '## Tools\\n' }}{%- for tool in tools %}{{ tool.function | tojson }}{{ '\\n' }}{%- endfor %}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{%- elif m.role == 'assistant' and m.content is none %}{{ '<|Assistant|><|calls|>' }}{%- for call in m.tool_calls %}"
    "{{ '<|call|>' + call.function.name + '<|sep|>' + call.function.arguments }}{%- endfor %}{{ '<|end|>' }}"
    "{%- elif m.role == 'assistant' %}{%- set said = m.content.split('</think>')[-1] %}{{ '<|Assistant|>' + said + '<|end|>' }}"
    "{%- elif m.role == 'tool' %}{{ '<|out|>' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{%- endif %}"
)
"""Arguments as text, contents of calls null; every thought is dropped, and the prompt opens one."""

HARMONY = (
    "{%- if tools %}{{ '<|start|>developer<|message|># Tools\\n' }}{%- for tool in tools %}"
    "{{ '// ' + tool.function.description + '\\n' }}"
    "{{ 'type ' + tool.function.name + ' = (_: ' + (tool.function.parameters | tojson) + ')\\n' }}{%- endfor %}"
    "{{ '<|end|>' }}{%- endif %}{%- set ns = namespace(called='', last=-1) %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role in ('system', 'user') %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- elif m.role == 'assistant' %}"
    "{%- if m.thinking and loop.index0 > ns.last %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{%- if m.tool_calls %}{%- set ns.called = m.tool_calls[0].function.name %}"
    "{{ '<|start|>assistant to=functions.' + ns.called + '<|channel|>commentary json<|message|>' }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '<|call|>' }}{%- else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}{%- endif %}"
    "{%- elif m.role == 'tool' %}{%- if not ns.called %}{{ raise_exception('a result without a call') }}{%- endif %}"
    "{{ '<|start|>functions.' + ns.called + ' to=assistant<|channel|>commentary<|message|>' + (m.content | tojson) + '<|end|>' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{%- endif %}"
)
"""Thoughts are messages of their own, calls and answers end with tokens of their own, of several calls the first is written."""

GRANITE = (
    "{%- if tools %}{{ '<|role|>tools<|/role|>' + (tools | tojson(indent=2)) + '<|end_of_text|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|role|>' + m.role + '<|/role|>' + (m.content or '') }}"
    "{%- if m.tool_calls %}{{ '<|tool_call|>' }}[{%- for call in m.tool_calls %}"
    '{{ \'{"name": "\' + call.function.name + \'", "arguments": \' + '
    "(call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) + '}' }}"
    "{{ ', ' if not loop.last }}{%- endfor %}]{%- endif %}"
    "{{ '<|end_of_text|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|role|>assistant<|/role|>' }}{%- endif %}"
)
"""Arguments as either; a control token opens the calls."""

TEMPLATES = {
    "hermes": HERMES,
    "qwen3": QWEN3,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "harmony": HARMONY,
    "granite": GRANITE,
}
ENDS = {
    "hermes": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama": "<|eot|>",
    "mistral": "</s>",
    "deepseek": "<|end|>",
    "harmony": "<|return|>",
    "granite": "<|end_of_text|>",
}
"""The end token of each model's tokenizer."""

DROPS_THOUGHTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if loop.last and m.get('reasoning_content') %}<think>"
    "{{ m['reasoning_content'] }}</think>{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Renders the thought of the last message alone."""
