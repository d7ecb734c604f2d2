"""The model card: what the Hub takes, what a person needs, and nothing of the machine that made it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from tests.doubles.populations import ends

from tuneful.export.card import Card, card_text, data_name, license_of, write_card
from tuneful.model.builtin import BUILTIN, BUILTIN_HUB_ID
from tuneful.runs.schema import Comparison, read_strictly

RUN = Path(__file__).parents[1] / "runs" / "run_before_renaming"
COMPARISON = read_strictly(Comparison, json.loads((RUN / "comparison.json").read_text()), "comparison.json")
CARD = Card(facts={"records": "17", "note": "a | b"}, data=("owner/data",), license="apache-2.0")


def front(card: Card, folder: Path, base_name: str = "owner/model") -> dict[str, Any]:
    """The front matter of a card as the Hub's own library reads it back, every check of that library passed."""
    write_card(folder, base_name, card, "float32")
    loaded = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    found = metadata_load(folder / "README.md")
    assert found is not None
    ModelCardData(**found, ignore_metadata_errors=False)
    assert loaded.data.to_dict() == found
    return found


@pytest.mark.parametrize(
    ("base_name", "expected"),
    [(BUILTIN, BUILTIN_HUB_ID), ("owner/model", "owner/model"), ("/home/me/model", None), ("./", None)],
)
def test_it_names_base_data_and_run(base_name: str, expected: str | None, tmp_path: Path) -> None:
    data = front(CARD, tmp_path, base_name)
    assert data.get("base_model") == expected
    assert (data["pipeline_tag"], data["library_name"]) == ("text-generation", "transformers")
    assert (data["datasets"], data["license"]) == (["owner/data"], "apache-2.0")
    assert "tuneful" in data["tags"]
    text = (tmp_path / "README.md").read_text()
    assert "| records | 17 |" in text
    assert r"| note | a \| b |" in text
    assert "/home" not in text
    assert "# , finetuned" not in text
    assert "http" not in text, "a link to what is not published"


@pytest.mark.parametrize(
    ("name", "shown", "is_known"),
    [
        ("owner/data", "owner/data", True),
        ("owner/data:train", "owner/data:train", True),
        ("/home/me/secret/my.jsonl", "my.jsonl", False),
        ("~/secret/my.jsonl", "my.jsonl", False),
        ("secret/my.jsonl", "my.jsonl", False),
        ("secret/*.parquet", "*.parquet", False),
        ("starter", "starter", False),
        ("-", "standard input", False),
    ],
)
def test_only_what_the_hub_knows_is_a_data_set_and_of_a_path_the_name_is_told(
    name: str, shown: str, is_known: bool, tmp_path: Path
) -> None:
    assert data_name(name) == shown
    data = front(Card(data=(name,), data_sha256="ab" * 32), tmp_path)
    assert data.get("datasets") == (["owner/data"] if is_known else None)
    text = (tmp_path / "README.md").read_text()
    assert f"| data | {shown} |" in text
    assert "ab" * 32 in text
    assert "secret" not in text


def test_a_folder_of_data_that_looks_like_an_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "data").write_text("{}")
    assert data_name("owner/data") == "data"


def test_the_comparison_stands_in_the_body_and_in_the_model_index(tmp_path: Path) -> None:
    card = replace(CARD, data=("/home/me/rows.json",), data_sha256="cd" * 32, comparison=COMPARISON)
    tested, general = front(card, tmp_path, "/home/me/llama")["model-index"][0]["results"]
    assert tested["dataset"] == {
        "name": "test records of rows.json",
        "type": "custom",
        "split": "test",
        "args": {"sha256": "cd" * 32},
    }
    assert [(one["name"], one["value"]) for one in tested["metrics"]] == [
        (metric.label, round(metric.tuned, 6)) for metric in COMPARISON.metrics
    ]
    assert {one["type"] for one in tested["metrics"]} >= {"rouge", "f1", "exact_match", "chrf", "perplexity"}
    chrf = next(one for one in tested["metrics"] if one["type"] == "chrf")
    metric = COMPARISON.measured("chrf")
    assert metric is not None
    assert chrf["args"] == {
        "base": round(metric.base, 6),
        "difference": round(metric.difference, 6),
        "low": round(ends(metric)[0], 6),
        "high": round(ends(metric)[1], 6),
        "confidence": 0.95,
        "num_items": 11,
    }
    assert [one["type"] for one in general["metrics"]] == ["forgetting", "kl_to_base"]
    text = (tmp_path / "README.md").read_text()
    assert COMPARISON.sentence is not None
    assert COMPARISON.sentence in text
    assert "| metric | base | tuned | difference, 95% interval | verdict |" in text
    for one in (*COMPARISON.metrics, *COMPARISON.forgetting):
        interval = f"{one.difference:+.3f}  [{one.low:+.3f}, {one.high:+.3f}]"
        assert f"| {one.label} | {one.base:.3f} | {one.tuned:.3f} | {interval} | {one.verdict} |" in text
    assert "/home" not in text


def test_test_records_of_a_data_set_of_the_hub_are_told_by_its_id(tmp_path: Path) -> None:
    found = front(replace(CARD, comparison=COMPARISON), tmp_path)
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == "owner/data"
    assert found["model-index"][0]["name"] == "owner/model, finetuned"


def test_a_card_without_a_comparison_promises_none(tmp_path: Path) -> None:
    assert "model-index" not in front(CARD, tmp_path)
    assert "better" not in (tmp_path / "README.md").read_text()


def test_it_is_written_again_whole_and_nothing_else_of_the_folder_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(tmp_path, "owner/model", CARD, "float32")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = (tmp_path / "model.safetensors").stat()
    write_card(tmp_path, "owner/model", replace(CARD, comparison=COMPARISON), "float32")
    assert (tmp_path / "model.safetensors").stat() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "model.safetensors"]
    whole = (tmp_path / "README.md").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tuneful.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_card(tmp_path, "owner/model", CARD, "float32")
    assert (tmp_path / "README.md").read_bytes() == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "model.safetensors"]


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# A model\n", "mit"),
        ("---\ntags: [a]\n---\n# A model\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: 'mit\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("# A model\n\nlicense: mit\n", None),
        (b"---\nlicense: \xff\n---\n", None),
        (None, None),
    ],
)
def test_the_license_is_what_the_card_of_the_base_says(
    card: str | bytes | None, expected: str | None, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert license_of(tmp_path, str(tmp_path)) == expected


def test_the_license_of_the_builtin_model_is_known_and_that_of_a_damaged_gguf_file_is_not(tmp_path: Path) -> None:
    assert license_of(tmp_path, BUILTIN) == license_of(tmp_path, BUILTIN_HUB_ID) == "apache-2.0"
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert license_of(tmp_path / "model.gguf", str(tmp_path / "model.gguf")) is None


def test_a_card_that_we_wrote_hands_its_license_on(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card_text("owner/model", CARD, "float32"), encoding="utf-8")
    assert license_of(tmp_path, str(tmp_path)) == "apache-2.0"
