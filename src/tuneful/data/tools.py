"""Tools, calls of them and thoughts, in the spellings of those who write them, become one form each.

    tools      a list or its JSON text, of {"type": "function", "function": {name, description, parameters}} (OpenAI) or of
               {name, description, parameters} (its `functions`, LLaMA-Factory); `input_schema` is `parameters` (Anthropic)
    calls      tool_calls: [{"id", "function": {"name", "arguments"}}] or [{"name", "arguments"}]; function_call: {...}; the text
               of a message of ShareGPT's `function_call`. Arguments are an object or its JSON text; both become the same text
    thoughts   reasoning_content, thinking, reasoning; or <think>...</think> before the answer in its text

What has no such form is refused by name. Which form a template wants is no matter of the data: `encoding/chat_template.py`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tuneful.data.notes import Noted, quoted
from tuneful.data.rows import shown
from tuneful.data.values import Fields, from_json_text, is_blank, kind_of, text_of, unfit
from tuneful.types import ToolCall

TOOLS = ("tools", "functions")
"""Columns of the tools that may be called."""
CALLS = ("tool_calls", "function_call")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message under which it says what was thought before it."""
_PARAMETERS = ("parameters", "input_schema", "inputSchema", "arguments")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


def tools_of(fields: Fields, noted: Noted) -> str:
    """The tools of a record as JSON text, "" where it has none; UnfitError for what is no list of functions."""
    key = next((key for key in TOOLS if not is_blank(fields.get(key))), None)
    if key is None:
        return ""
    tools = from_json_text(fields[key], f"`{key}`", noted)
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        unfit(f"`{key}` is {kind_of(tools)}, expected a list of tools")
    read = [_tool(tool, f"`{key}` {number}", noted) for number, tool in enumerate(tools, start=1)]
    return _json(read, f"`{key}`") if read else ""


def _tool(tool: Any, where: str, noted: Noted) -> dict[str, Any]:
    tool = from_json_text(tool, where, noted)
    if not isinstance(tool, dict):
        unfit(f"{where} is {kind_of(tool)}, expected an object with a name and parameters")
    kind = tool.get("type")
    if isinstance(tool.get("function"), dict):
        tool = tool["function"]
    elif kind not in (None, "function", "object"):
        unfit(f"{where} is of type `{shown(str(kind))}`; functions are trained")
    name = tool.get("name")
    if not isinstance(name, str) or not name.strip():
        unfit(f"{where} has no `name`")
    function = {key: value for key, value in tool.items() if key not in (*_PARAMETERS, "type")}
    parameters = next((tool[key] for key in _PARAMETERS if not is_blank(tool.get(key))), None)
    if parameters is not None:
        function["parameters"] = from_json_text(parameters, f"`parameters` of {where}", noted)
    return {"type": "function", "function": function}


def calls_of(entry: Fields, where: str, noted: Noted) -> tuple[ToolCall, ...]:
    """The calls of the message `entry`; UnfitError for what is none."""
    key = next((key for key in CALLS if not is_blank(entry.get(key))), None)
    return () if key is None else calls_in(entry[key], f"`{key}` of {where}", noted)


def calls_in(value: Any, where: str, noted: Noted) -> tuple[ToolCall, ...]:
    """The calls that `value` is: one, a list of them, or the JSON text of such."""
    calls = from_json_text(value, where, noted)
    if not isinstance(calls, (list, dict)) or not calls:
        unfit(f"{where} is {kind_of(calls)}, expected a call of a tool with its name and arguments")
    return tuple(_call(call, where, noted) for call in (calls if isinstance(calls, list) else [calls]))


def _call(call: Any, where: str, noted: Noted) -> ToolCall:
    call = from_json_text(call, where, noted)
    if not isinstance(call, dict):
        unfit(f"{where} holds {kind_of(call)}, expected an object with a name and arguments")
    called = call["function"] if isinstance(call.get("function"), dict) else call
    name = called.get("name")
    if not isinstance(name, str) or not name.strip():
        unfit(f"{where} has no `name`")
    given: Any = next(
        (called[key] for key in ("arguments", "parameters", "input") if not is_blank(called.get(key))), {}
    )
    arguments = from_json_text(given, f"`arguments` of {where}", noted)
    if not isinstance(arguments, dict):
        unfit(f"`arguments` of {where} is {kind_of(arguments)}, expected an object or its JSON text")
    call_id = call.get("id")
    return ToolCall(name, _json(arguments, f"`arguments` of {where}"), call_id if isinstance(call_id, str) else "")


def thought_of(entry: Fields, where: str, noted: Noted) -> str:
    """What was thought before the message `entry`, "" where it does not say; UnfitError where two keys say different things."""
    found = {key: entry[key] for key in THOUGHTS if not is_blank(entry.get(key))}
    if not found:
        return ""
    texts = {key: text_of(value, f"`{key}` of {where}", noted, f"`{key}`").strip() for key, value in found.items()}
    if len(set(texts.values())) > 1:
        unfit(f"{where} has two different thoughts: {' and '.join(map(quoted, texts))}")
    noted.add("thought", quoted(next(iter(texts))))
    return next(iter(texts.values()))


def without_thought(text: str, noted: Noted) -> tuple[str, str]:
    """(thought, answer) of an answer's `text`, where it begins with <think>...</think>; a thought without words stays text."""
    if "</think>" not in text or (found := _THOUGHT.fullmatch(text)) is None:
        return "", text
    thought, answer = found[1].strip(), found[2]
    if not thought or not answer.strip():
        return "", text
    noted.add("thought", "`<think>`")
    return thought, answer


def result_text(content: Any, where: str, noted: Noted) -> str:
    """What a tool answered, as text: an object or a list is its JSON text."""
    if content is None:
        return ""
    if isinstance(content, (dict, list)):
        noted.add("result_as_json")
        return _json(content, where)
    return text_of(content, where, noted)


def _json(value: Any, where: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        unfit(f"{where} holds a lone surrogate, which is no character")
    return text
