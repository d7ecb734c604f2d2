"""What the benchmarks publish is what their documents hold, and what they call equal work is equal."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def module(name: str) -> Any:
    return importlib.import_module(name)


def write_document(folder: Path, day: int, seconds: str, processor: str = "P") -> None:
    document = {
        "benchmark": "lora",
        "format": 2,
        "model": "tiny",
        "num_threads": 2,
        "hardware": {"processor": processor, "cores": 2, "memory_bytes": 2**34, "flags": ["avx2"]},
        "warnings": [],
        "works": [
            {
                "work": {"name": "starter8"},
                "description": "8 records",
                "table": ["| s/step |", "|---|", f"| {seconds} |"],
            }
        ],
    }
    (folder / f"lora-2026-12-0{day}.json").write_text(json.dumps(document))


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert module("tables").with_tables(text) == text, "run: python benchmarks/tables.py"


def test_of_two_documents_of_one_work_the_newest_is_in_the_table(tmp_path: Path) -> None:
    write_document(tmp_path, 2, "0.20")
    write_document(tmp_path, 1, "0.10")
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    made = module("tables").with_tables(text, tmp_path)
    assert "### lora, starter8, tiny, P\n\n8 records. P, 2 cores, 16 GiB, avx2; 2 threads." in made
    assert "| 0.20 |" in made
    assert "| 0.10 |" not in made


def test_each_processor_has_a_table_of_its_own(tmp_path: Path) -> None:
    write_document(tmp_path, 1, "0.10", "slow")
    write_document(tmp_path, 2, "0.20", "fast")
    made = module("tables").with_tables((BENCHMARKS / "README.md").read_text(encoding="utf-8"), tmp_path)
    assert made.index("tiny, fast") < made.index("| 0.20 |") < made.index("tiny, slow") < made.index("| 0.10 |")


@pytest.mark.parametrize(
    ("off", "dtype", "void"),
    [
        ([0.009, 0.04, 0.04], "bfloat16", False),
        ([0.011, 0.0, 0.0], "bfloat16", True),  # other records, or other targets
        ([0.0, 0.0, 0.06], "bfloat16", True),  # another update
        ([2e-4, 0.0, 0.0], "float32", True),
        ([float("nan"), 0.0, 0.0], "bfloat16", True),
    ],
)
def test_a_system_whose_losses_are_not_the_references_is_void(off: list[float], dtype: str, void: bool) -> None:
    assert (module("train_peers.gate").gate_verdict(off, dtype) is not None) == void


def test_removing_what_was_named_has_to_move_answers_more_than_removing_at_random_each_time() -> None:
    explain = module("explain")
    rows, planted = explain.training_rows(20, explain.FACTS[:2], 0)
    assert len(rows) == 28
    assert [{rows[place]["output"] for place in own} for own in planted] == [
        {answer for _, answer in fact.told} for fact in explain.FACTS[:2]
    ]
    found = explain.Found("Which?", "It is Darwin.", True, [1, 2, 3, 9], [1, 2, 3, 4], -1.0)
    named, little, much = (explain.Removal("", 4, moved) for moved in ([-2.0, 0.5], [0.1, -0.1], [1.0, 0.6]))
    assert explain.is_as_asked([found], [named, little], 28)
    assert not explain.is_as_asked([found], [named, little, much], 28)
    missed = explain.Found("Which?", "It is Darwin.", True, [1, 2, 3, 4], [1, 2, 3, 5], -1.0)
    assert not explain.is_as_asked([missed], [named, little], 28)
    assert explain.at_the_head([found, missed], 28) == (
        "among the first 4: known facts by cosine: 7 of 8, all of 1 of 2; known facts by score: 7 of 8, all of 1 of 2; "
        "unseen facts by cosine: 0 of 0, all of 0 of 0; unseen facts by score: 0 of 0, all of 0 of 0"
    )


def test_only_a_system_without_a_setting_that_passes_fails_the_benchmark() -> None:
    gate, systems = module("train_peers.gate"), module("train_peers.systems")
    one, other = systems.FULL_SYSTEMS["trl"], systems.FULL_SYSTEMS["litgpt"]
    trials = [
        gate.Trial(systems.Contender("trl padded", one, "padded"), void="first loss off", disagrees=True),
        gate.Trial(systems.Contender("trl padding-free", one, "padding-free")),
        gate.Trial(systems.Contender("litgpt", other, "bf16-true"), void="first loss off", disagrees=True),
    ]
    assert list(gate.disagreeing([one, other], trials)) == ["litgpt"]


def test_the_roofline_of_an_adapter_counts_no_gradient_of_a_frozen_matrix() -> None:
    roofline = module("train_peers.roofline")
    shape = roofline.Shape(num_layers=1, d_model=4, d_attention=4, d_keys=2, d_mlp=8, num_tokens=10, tied=True)
    frozen_kv, frozen_rest, head = 2 * 4 * 2, 2 * 4 * 4 + 3 * 4 * 8, 10 * 4
    adapter_kv, adapter_rest = 2 * 2 * (4 + 2), 2 * (2 * (4 + 4) + 3 * (4 + 8))
    # one layer is the first and the last: every row has keys and values, target rows have the rest; below it nothing is trained
    below_first = 2 * (5 * (frozen_kv + 2 * 2 * 4) + 3 * (4 * 4 + 2 * 4))
    wanted = (
        5 * (4 * frozen_kv + 6 * adapter_kv) + 3 * (4 * frozen_rest + 6 * adapter_rest) + 3 * 4 * head - below_first
    )
    assert shape.operations(rows=5, target_rows=3, rank=2) == wanted
    assert shape.adapter_parameters(2) == adapter_kv + adapter_rest
    assert shape.operations(rows=5, target_rows=3, rank=0) == 6 * (5 * frozen_kv + 3 * (frozen_rest + head))


def test_the_figures_on_paper_of_many_devices_are_those_of_the_document() -> None:
    paper = module("many_devices")
    text = (BENCHMARKS.parent / "docs" / "distributed.md").read_text(encoding="utf-8")
    assert "\n".join(paper.table()) in text, "run: python benchmarks/many_devices.py"
    small, middle, large = paper.SHAPES
    assert [round(shape.parameters / 1e8) for shape in paper.SHAPES] == [12, 80, 706]
    eight_bytes = 8 * 7 / 8 * small.parameters  # twice 4 of gradients; or 2 and 2 of weights, and 4 of gradients
    assert paper.ddp(small, 8).sent_bytes == paper.fsdp(small, 8).sent_bytes == eight_bytes
    assert paper.fsdp(small, 8).seconds == pytest.approx(eight_bytes / 350e9 + 3 * 17 * 7 * 3e-6)
    copies = paper.fsdp(middle, 64, 8)
    assert copies.seconds == pytest.approx(
        (7 * middle.parameters) / 350e9 + middle.parameters * 7 / 8 / 40e9 + 33 * (3 * 7 + 2 * 7) * 3e-6
    )
    assert paper.shard_ranks(large, 512) == 32
    waits, cut = (f"{paper.fsdp(middle, 512, ranks, micro_batches=4).seconds:.1f} s" for ranks in (None, 8))
    assert f"8B on 512 GPUs {waits}, with copies in nodes {cut}" in " ".join(text.split())


def test_a_piece_that_was_measured_is_not_measured_again_and_is_of_one_request(tmp_path: Path) -> None:
    explain = module("explain")
    pieces, measured = explain.Pieces(tmp_path, {"seed": 0}), list[int]()
    for _ in range(2):
        assert pieces("found", lambda: measured.append(1) or [1.5]) == [1.5]
    again = explain.Pieces(tmp_path, {"seed": 0})
    assert again("found", lambda: measured.append(1)) == [1.5]
    assert (measured, list(again.seconds)) == ([1], ["found"])
    with pytest.raises(explain.ConfigError, match="pieces of another request"):
        explain.Pieces(tmp_path, {"seed": 1})


def test_an_answer_that_cannot_be_explained_was_not_found_and_moves_nothing() -> None:
    explain = module("explain")
    empty = explain.Found("Which?", "", False, [], [], None)
    removals = [explain.Removal("", 0, [None]), explain.Removal("", 0, [None])]
    assert not explain.is_as_asked([empty], removals, 28)


@pytest.mark.parametrize(("exponent_beyond", "held"), [(0.5, True), (3.0, False)])
def test_a_curve_of_half_of_the_data_is_held_against_the_whole(
    tmp_path: Path, exponent_beyond: float, held: bool
) -> None:
    curve = module("learning_curve")
    schema = importlib.import_module("tuneful.runs.schema")

    def run(share: float, seed: int) -> Any:
        exponent = 0.5 if share <= 0.5 else exponent_beyond
        loss = 1.0 + 0.2 * share**-0.5 if share <= 0.5 else 1.0 + 0.2 * 0.5 ** (exponent - 0.5)
        settings = {"data.train_share": share, "train.seed": seed}
        name, size = f"run-{share}-{seed}", round(800 * share)
        return schema.SweepRun(name, settings, "trained", None, (), 1, size, loss + 1e-4 * seed, None)

    runs = [run(share, seed) for share in curve.SHARES for seed in (1, 2)]
    document = type("Document", (), {"runs": runs, "confidence": 0.95})()
    found = curve.held_out(type("Result", (), {"path": tmp_path, "document": document})())
    assert found["held"] == held
    assert found["predicted"]["gain"] == pytest.approx(0.2 * (0.5**-0.5 - 1), rel=0.05)
    assert len(found["curve"]["sizes"]) == 8


def test_results_name_no_folder_of_the_machine_that_they_ran_on() -> None:
    known = module("train_peers.driver")._as_known
    assert known(BENCHMARKS.parent) == "."
    assert known(Path("/home/somebody/old")) == "old"
    for file in sorted((BENCHMARKS / "results").glob("*.json")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'"(/(home|root|work|tmp|Users)/|[A-Z]:\\\\)', text), file.name
