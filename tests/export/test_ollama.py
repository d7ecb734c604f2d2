"""A Modelfile asks a model as it was trained: its TEMPLATE is rendered and compared, byte for byte."""

from pathlib import Path

import pytest
from tests.doubles.exported import byte_level_tokenizer, tiny_folder

import tuneful
from tuneful.config import load_config
from tuneful.errors import ExportError
from tuneful.export import formats
from tuneful.export.go_template import quoted, render_go
from tuneful.export.ollama import block_of, modelfile, ollama_data, template_faults
from tuneful.export.source import Source, find_source

CHAT = (
    "{% if messages[0].role == 'system' %}{{ '<|im_start|>' + messages[0].content + '<|im_end|>' }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTS = (
    "{% for m in messages %}<|im_start|>{{ loop.index }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{{ messages | length + 1 }} {% endif %}"
)


def source(folder: Path, template: str, chat_template: str | None = None) -> Source:
    tokenizer = byte_level_tokenizer(begins=chat_template is NO_SYSTEM)
    tokenizer.chat_template = chat_template
    return find_source(load_config(None, [f"model.name_or_path={tiny_folder('llama', tokenizer, folder, template)}"]))


@pytest.mark.parametrize("template", ["alpaca", "alpaca-paired", "chatml", "phi-3"])
def test_the_modelfile_of_each_built_in_template_renders_as_training_does(template: str, tmp_path: Path) -> None:
    one = source(tmp_path, template)
    text = modelfile(one, "model.gguf", "apache-2.0")
    assert list(template_faults(one, text)) == []
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    assert "PARAMETER num_ctx 512\n" in text
    assert f'PARAMETER stop "{one.encoder.text.token_text([one.encoder.text.end_token_id])}"\n' in text
    for stop in one.encoder.text.template.stop:
        assert f'PARAMETER stop "{stop}"\n' in text
    assert 'LICENSE """apache-2.0"""' in text


def test_the_preamble_of_alpaca_is_the_system_text_that_a_user_may_replace(tmp_path: Path) -> None:
    text = modelfile(source(tmp_path, "alpaca"), "model.gguf", None)
    preamble = block_of(text, "SYSTEM")
    assert preamble is not None
    assert preamble.startswith("Below is an instruction")
    template = block_of(text, "TEMPLATE")
    assert template is not None
    asked = [{"role": "user", "content": "Hi"}]
    rendered = render_go(template, ollama_data(asked, preamble))
    assert rendered == f"{preamble}\n\n### Instruction:\nHi\n\n### Response:\n"
    assert render_go(template, ollama_data(asked, "")) == rendered
    own = [{"role": "system", "content": "Be brief."}, *asked]
    assert render_go(template, ollama_data(own, preamble)) == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n"


@pytest.mark.parametrize("chat_template", [CHAT, NO_SYSTEM], ids=["with a system text", "without one, and trimmed"])
def test_a_chat_template_of_the_tokenizers_becomes_a_go_template(chat_template: str, tmp_path: Path) -> None:
    one = source(tmp_path, "tokenizer", chat_template)
    text = modelfile(one, "model.gguf", None)
    assert list(template_faults(one, text)) == []
    assert "<|begin|>" not in text  # the runtime puts it there


def test_a_chat_template_that_is_more_than_texts_in_between_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be said in an Ollama TEMPLATE"):
        modelfile(source(tmp_path, "tokenizer", COUNTS), "model.gguf", None)


def test_a_modelfile_without_template_is_a_fault(tmp_path: Path) -> None:
    assert list(template_faults(source(tmp_path, "chatml"), "FROM ./model.gguf\n")) == [
        "the Modelfile has no TEMPLATE: Ollama would guess one"
    ]


def test_an_export_for_ollama_is_a_file_and_its_modelfile(tmp_path: Path) -> None:
    folder = tiny_folder("llama", byte_level_tokenizer(), tmp_path / "model", "chatml")
    result = tuneful.export(folder, "ollama", type="q8_0", output=tmp_path / "out")
    assert sorted(result.proof.files) == ["Modelfile", "README.md", "model-q8_0.gguf"]
    assert result.proof.parts[-1].name == "Modelfile"
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model-q8_0.gguf\n")
    assert formats.FORMATS["ollama"].default == "q8_0"


# Go's templates


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ('a {{- " b" }} c', "a b c"),
        ("{{ if .System }}S{{ else if .Messages }}M{{ else }}N{{ end }}", "M"),
        (
            "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ $m.Content }}"
            "{{ if not $last }},{{ end }}{{ end }}",
            "x,y",
        ),
        (
            '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}[{{ .Content }}]{{ end }}{{ end }} {{- "!" }}',
            "[x]!",
        ),
    ],
)
def test_go_templates_render_as_in_go(template: str, rendered: str) -> None:
    data = {"System": "", "Messages": [{"Role": "user", "Content": "x"}, {"Role": "assistant", "Content": "y"}]}
    assert render_go(template, data) == rendered


@pytest.mark.parametrize("text", ["{{ x }}", 'say """three""" and \\n', "a\r\nb", "}}{{", "ü 😀"])
def test_any_text_can_stand_in_a_template_in_quotes(text: str) -> None:
    assert render_go(f"<{quoted(text)}>", {}) == f"<{text}>"
    assert '"""' not in quoted(text)


@pytest.mark.parametrize(
    "template", ["{{ printf .X }}", "{{ if .A }}", "{{ end }}", "{{ $x }}", "{{ .A | len }}", "{{ }}"]
)
def test_what_is_not_of_the_subset_is_an_error(template: str) -> None:
    with pytest.raises(ExportError, match="the TEMPLATE has"):
        render_go(template, {})
