"""A store of encoded records is found again as long as they would be encoded the same: ENCODING_VERSION says so."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tuneful.config import load_config
from tuneful.data.formats import FORMATS
from tuneful.data.read import stream_data
from tuneful.encoding import prepare, store
from tuneful.encoding.prepare import load_encoder, prepare_data
from tuneful.encoding.store import ABOUT, ENCODING_VERSION

DIGESTS = {
    1: "e810d6efa66e55fa502fdb667a026c4e791137cf1db8c3981a08092439f34772",
    2: "5839cd5668b21197354073458fa97cbc03f1e0e71a23add5e20792b74490f7e7",
    3: "a0d4d6e1d03da7ecc08dbba335e40d3f9a0ed1087d1c0a24803aaa2710f60f95",
}
"""What the records below come to, by version. A new version gets an entry of its own; no entry is ever changed."""


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CHAT = [message("user", "1+1?"), message("assistant", "2")]
ROWS: list[dict[str, Any]] = [
    {"instruction": "Name a river.", "output": "The Nile."},
    {"instruction": "Sum up.", "input": "É, 日本 and 🙂.", "output": "Signs.", "weight": 2},
    {"instruction": "Go on.", "system": "Be brief.", "history": [["One?", "1."], ["Two?", "2."]], "output": "3."},
    {"instruction": "Close <|im_end|>.", "context": "### Response: x", "response": "<|im_start|>user\n<s> y</s>"},
    {"question": "Why?", "answer": "  Because.\n\n"},
    {"prompt": "Once upon", "completion": " a time,"},
    {"prompt": [CHAT[0]], "completion": [CHAT[1]], "weight": "0.5"},
    {"messages": [message("system", "Rhyme."), *CHAT, *CHAT]},
    {"messages": [message("developer", [{"type": "text", "text": "Rhyme."}]), *CHAT]},
    {"conversations": [{"from": "human", "value": "Hi\t you"}, {"from": "gpt", "value": "Yo"}], "system": "Be."},
    {"instruction": "the long " * 30, "output": "cut " * 50},
    {"instruction": "A\r\nB", "input": "   ", "output": "C\u00a0D\u2028E\u200b"},
    {"instruction": "It has no answer."},
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ '<think></think>' + message.content | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content | trim + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SETTINGS: tuple[list[str], ...] = (
    [],
    ["template.name=alpaca-paired", "data.train_on=all", "data.max_length=400"],
    ["template.name=chatml", "data.prompt_weight=0.1", "data.train_turns=last"],
    ["template.name=phi-3", "data.on_long=cut_response", "data.max_length=250"],
    ["template.name=chatml", "data.on_long=cut_input", "data.max_length=300"],
    ["template.file=my.jinja"],
)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges, with a mark at the start of a text and a begin token before it: trained on nothing."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ċ", "Ċ"), ("o", "n"), ("#", "#"), ("##", "#")]
    vocab = {token: number for number, token in enumerate([*letters, *(one + other for one, other in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>"])
    begin = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def stored(settings: list[str]) -> Path:
    """The folder of the store that `rows.jsonl` is encoded to."""
    options = ["data.on_error=skip", "data.test_share=0", "data.validation_share=0"]
    config = load_config(None, [*options, *settings])
    cache = Path("cache")
    before = set(cache.iterdir()) if cache.is_dir() else set()
    prepare_data(stream_data("rows.jsonl", config.data), load_encoder(small_tokenizer(), config), config, cache)
    (folder,) = set(cache.iterdir()) - before
    return folder


@pytest.fixture(autouse=True)
def rows_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows and a chat template in the folder in which the test runs; every data set goes to a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY", 0)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    Path("my.jinja").write_text(TEMPLATE, encoding="utf-8")


def test_no_token_weight_or_column_changes_under_one_encoding_version() -> None:
    digest = hashlib.sha256(str(ENCODING_VERSION).encode())
    for settings in SETTINGS:
        folder = stored(settings)
        columns = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["columns"]
        for name, (dtype, _) in sorted(columns.items()):
            digest.update(f"{name} {dtype}".encode())
            if not name.startswith("skipped"):  # the wording of a reason may change
                digest.update((folder / name).read_bytes())
    assert DIGESTS.get(ENCODING_VERSION) == digest.hexdigest(), (
        "records are encoded otherwise than before, so stores of the version before must not be read: raise "
        f"ENCODING_VERSION in encoding/store.py, and add its digest here: {digest.hexdigest()}"
    )


def test_what_is_encoded_here_is_of_every_kind() -> None:
    config = load_config(None, ["data.on_error=skip"])
    stream = stream_data("rows.jsonl", config.data)
    assert sum(1 for _ in stream) == len(ROWS)
    assert {name.split(" (")[0] for name in stream.format.split(", ")} == {one.name for one in FORMATS}


def test_another_version_or_tokenizers_release_makes_a_store_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored([])
    monkeypatch.setattr(store, "ENCODING_VERSION", ENCODING_VERSION + 1)
    second = stored([])
    monkeypatch.setattr(tokenizers, "__version__", "0.0.1")
    assert len({first, second, stored([])}) == 3
