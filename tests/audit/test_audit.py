"""A file with known defects: exactly those rows are found. A clean file: nothing is."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.doubles.planted import AGAINST, clean_records, record, write_planted, write_rows

from tuneful.audit.audit import Audit, audit, audit_sides
from tuneful.audit.findings import KINDS, NEEDS_PAIRS, NEEDS_TOKENS
from tuneful.audit.fix import write_fixed
from tuneful.commands import check as checking
from tuneful.config import Config, load_config
from tuneful.data.read import Record, SkippedRow, read_data, stream_data
from tuneful.data.split import TEST, TRAIN, VALIDATION
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import make_encoder
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder


def look(path: Path, *settings: str, encoder: Encoder | None = None, **more: Any) -> Audit:
    config = load_config(None, ["data.on_error=skip", *settings])
    rows = (
        (row, encoder.example(row.conversation) if encoder and isinstance(row, Record) else None)
        for row in stream_data(str(path), config.data)
    )
    return audit(rows, config, encoder, **more)


def encoder_of(tokenizer: Any, *settings: str) -> Encoder:
    config = load_config(None, list(settings))
    return make_encoder(TextEncoder(tokenizer, find_template(config.template.name)), config.data)


def lines(found: Audit) -> dict[str, set[int]]:
    return {
        finding.kind.name: {int(source.rpartition(":")[2]) for source in finding.sources} for finding in found.findings
    }


def conversations(path: Path) -> list[Any]:
    return [one.conversation for one in read_data(str(path)).records]


def test_exactly_the_planted_rows_are_found(tmp_path: Path) -> None:
    expected = write_planted(tmp_path / "planted.jsonl")
    write_rows(tmp_path / "benchmark.jsonl", AGAINST)
    found = look(tmp_path / "planted.jsonl", against=conversations(tmp_path / "benchmark.jsonl"))
    assert lines(found) == expected
    of_labels = {
        "label_spellings",
        "unseen_labels",
    }  # which stand in no set of other records: tests/audit/test_labels.py
    assert set(expected) == set(KINDS) - NEEDS_TOKENS - NEEDS_PAIRS - of_labels - {"leakage"}  # every kind was planted
    for finding in found.findings:
        assert len(finding.cases) == min(3, finding.count)
        assert [case.source for case in finding.cases] == list(finding.sources[:3])


def test_a_record_that_the_template_cannot_render_is_named_and_the_rest_is_looked_at(
    tmp_path: Path, byte_tokenizer: Any
) -> None:
    called = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}
    asked, told = {"role": "user", "content": "1+1?"}, {"role": "tool", "content": "2"}
    rows = [
        {"messages": [asked, called, told, {"role": "assistant", "content": "Two."}]},
        record("Name a river.", "The Nile."),
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    for encoder in (None, encoder_of(byte_tokenizer)):
        found = look(tmp_path / "a.jsonl", encoder=encoder)
        assert found.num_read == 2
        assert "Name a river." in found.prompt
        assert ("unusable_rows" in lines(found)) == (encoder is not None)


def test_a_clean_file_has_no_findings(tmp_path: Path, builtin_tokenizer: Any) -> None:
    path = tmp_path / "clean.jsonl"
    write_rows(path, clean_records(400))
    found = look(path, encoder=encoder_of(builtin_tokenizer))
    assert found.findings == ()
    assert found.num_read == found.num_used == found.num_ended == 400
    assert found.unit == "tokens"


def test_the_built_in_set_has_no_findings() -> None:
    found = look(Path("starter"))
    assert found.findings == ()
    assert found.clusters == ()
    assert found.unit == "words"
    assert found.num_trained is None


@pytest.mark.parametrize("kind", ["leakage", "none"])
def test_a_test_prompt_that_was_trained_on_is_leakage(tmp_path: Path, kind: str) -> None:
    rows = clean_records(40)
    rows[30] = {**rows[4], "output": "Something else altogether, and at some greater length than that."}
    rows[31] = {
        **rows[5],
        "instruction": rows[5]["instruction"].upper(),
        "output": "Again it is not what it was before, is it?",
    }
    write_rows(tmp_path / "rows.jsonl", rows)
    records = read_data(str(tmp_path / "rows.jsonl")).records
    held_out = (
        {30: TEST, 5: VALIDATION, 20: TEST} if kind == "leakage" else {}
    )  # row 6's copy, in line 32, is trained on
    given = {
        side: [(records[row], None) for row in range(40) if held_out.get(row, TRAIN) == side]
        for side in (TRAIN, VALIDATION, TEST)
    }
    found = lines(audit([], Config(), None, given=given))
    assert found.get("leakage") == ({31, 6} if kind == "leakage" else None)


def test_files_of_their_own_are_compared_with_what_is_trained(tmp_path: Path) -> None:
    rows = clean_records(60)
    write_rows(tmp_path / "rows.jsonl", rows[:50])
    write_rows(tmp_path / "test.jsonl", [*rows[50:], rows[7]])
    settings = [f"data.test_file={tmp_path / 'test.jsonl'}", "data.validation_share=0"]
    config = load_config(None, settings)
    checked = checking.check(str(tmp_path / "rows.jsonl"), config=config).audit
    (leak,) = (finding for finding in checked.findings if finding.kind.name == "leakage")
    assert leak.sources == (f"{tmp_path / 'test.jsonl'}:11",)
    assert checked.sides == {"train": 50, "validation": 0, "test": 11}


def test_what_a_run_divides_grouped_does_not_leak_and_what_it_divides_by_chance_does(tmp_path: Path) -> None:
    rows = [one for one in clean_records(60) for _ in range(2)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert "leakage" not in lines(look(tmp_path / "rows.jsonl"))
    found = look(tmp_path / "rows.jsonl", "data.split=random", "data.test_share=0.3")
    assert lines(found)["leakage"]
    assert sum(found.sides.values()) == 120


def test_sides_are_those_of_a_run(tmp_path: Path, byte_tokenizer: Any) -> None:
    from tuneful.encoding.prepare import prepare_data

    rows = clean_records(90)
    rows[7]["output"] = "long " * 300
    write_rows(tmp_path / "rows.jsonl", rows)
    encoder = encoder_of(byte_tokenizer, "data.max_length=600")
    found = look(tmp_path / "rows.jsonl", "data.max_length=600", encoder=encoder)
    prepared = prepare_data(
        read_data(str(tmp_path / "rows.jsonl")), encoder, load_config(None, ["data.max_length=600"])
    )
    assert found.sides == {
        "train": len(prepared.train),
        "validation": len(prepared.validation),
        "test": len(prepared.test),
    }
    assert lines(found)["too_long"] == {8}
    assert (found.num_read, found.num_used, found.num_refused) == (90, 89, 1)


def test_a_run_finds_what_a_check_finds(tmp_path: Path, byte_tokenizer: Any) -> None:
    from tuneful.encoding.prepare import describe, prepare_data
    from tuneful.runs.schema import as_row

    write_planted(tmp_path / "planted.jsonl")
    settings = ["data.on_error=skip", "data.max_length=20000"]
    config, encoder = load_config(None, settings), encoder_of(byte_tokenizer, *settings)
    checked = look(tmp_path / "planted.jsonl", *settings, encoder=encoder)
    data = prepare_data(read_data(str(tmp_path / "planted.jsonl"), config.data), encoder, config)
    sides = [(side.records, side.examples) for side in (data.train, data.validation, data.test)]
    run = audit_sides(sides, data.refused, config, encoder)
    assert {finding.kind.name: finding.count for finding in run.findings} == {
        finding.kind.name: finding.count for finding in checked.findings
    }
    document = as_row(run.added_to(describe(data, encoder, config)))
    for figures in ("lengths", "length_histogram"):
        assert document[figures] == checked.as_dict()[figures]
    assert document["findings"][0].keys() == {
        "name",
        "severity",
        "title",
        "count",
        "cases",
        "why",
        "advice",
        "fix",
    }
    assert (run.num_read, run.num_used, run.sides) == (checked.num_read, checked.num_used, checked.sides)


def test_characters_that_the_tokenizer_drops_are_found(tmp_path: Path, builtin_tokenizer: Any) -> None:
    rows = clean_records(6)
    rows[3]["output"] += " \U00040001"  # the byte F1 is missing from this vocabulary
    rows[4]["output"] += " \U0001f600 字 é \u200d"
    write_rows(tmp_path / "rows.jsonl", rows)
    found = look(tmp_path / "rows.jsonl", encoder=encoder_of(builtin_tokenizer))
    assert lines(found) == {"unwritable_characters": {4}}
    assert found.findings[0].cases[0].text == "U+40001"


def test_cut_records_are_found_and_their_end_tokens_not_counted(tmp_path: Path, byte_tokenizer: Any) -> None:
    rows = clean_records(8)
    rows[2]["output"] = "so " * 400
    write_rows(tmp_path / "rows.jsonl", rows)
    settings = ("data.max_length=500", "data.on_long=cut_response")
    found = look(tmp_path / "rows.jsonl", *settings, encoder=encoder_of(byte_tokenizer, *settings))
    assert lines(found)["cut_records"] == {3}
    assert found.num_ended == 7


def test_a_doubled_begin_token_is_found(tmp_path: Path, byte_tokenizer: Any) -> None:
    encoder = encoder_of(byte_tokenizer, "template.name=chatml")
    start = next(number for number, text in encoder.text.control_token_ids.items() if text == "<|im_start|>")
    encoder.text._begin_token_ids = [start]  # a tokenizer that begins each text with what the template begins with
    write_rows(tmp_path / "rows.jsonl", clean_records(5))
    found = look(tmp_path / "rows.jsonl", "template.name=chatml", encoder=encoder)
    assert lines(found)["double_bos"] == {1, 2, 3, 4, 5}


def test_an_answer_that_would_merge_with_the_prompt_is_a_note(tmp_path: Path, gpt2_tokenizer: Any) -> None:
    rows = clean_records(5)
    rows[1]["output"] = "\n\n" + rows[1]["output"]  # GPT-2 has a token for two line feeds
    write_rows(tmp_path / "rows.jsonl", rows)
    found = look(tmp_path / "rows.jsonl", encoder=encoder_of(gpt2_tokenizer))
    assert lines(found) == {"boundary_tokenization": {2}}
    assert found.num_findings == 0


def test_the_prompt_shown_is_what_inference_sends(tmp_path: Path, builtin_tokenizer: Any) -> None:
    write_rows(tmp_path / "rows.jsonl", clean_records(5))
    encoder = encoder_of(builtin_tokenizer)
    first = conversations(tmp_path / "rows.jsonl")[0]
    for found in (look(tmp_path / "rows.jsonl"), look(tmp_path / "rows.jsonl", encoder=encoder)):
        assert found.prompt == encoder.prompt_text(first)
        assert found.prompt_source == first.source
    assert encoder.text.token_text(encoder.prompt_ids(first)) == found.prompt


def test_clusters_name_all_their_rows_and_the_least_similarity(tmp_path: Path) -> None:
    asked = "Describe the journey of a letter from the sender to the receiver in the old days of the coach"
    rows = [record(asked + tail, f"Answer {number}.") for number, tail in enumerate(["", " and horse", " and ship"])]
    write_rows(tmp_path / "rows.jsonl", rows)
    (cluster,) = look(tmp_path / "rows.jsonl").clusters
    assert [int(source.rpartition(":")[2]) for source in cluster.sources] == [1, 2, 3]
    assert 0.8 <= cluster.similarity < 1


def test_a_finding_does_not_print_a_secret_or_an_address(tmp_path: Path) -> None:
    rows = [record("What is in the file?", "It holds ghp_0123456789abcdefghijABCDEFGHIJ456789 and anna.k@posthaus.de.")]
    write_rows(tmp_path / "rows.jsonl", rows)
    document = json.dumps(look(tmp_path / "rows.jsonl").as_dict())
    assert "0123456789" not in document
    assert "anna.k" not in document


def test_every_fixed_row_is_accounted_for_and_the_new_file_is_clean_of_what_was_safe(tmp_path: Path) -> None:
    path, out = tmp_path / "planted.jsonl", tmp_path / "fixed.jsonl"
    write_planted(path)
    write_rows(tmp_path / "benchmark.jsonl", AGAINST)
    found = look(path, against=conversations(tmp_path / "benchmark.jsonl"))
    config = load_config(None, ["data.on_error=skip"])
    rows: list[Record | SkippedRow] = list(stream_data(str(path), config.data))
    fixes = write_fixed(rows, found.dropped, out)
    assert fixes.dropped == {
        "unusable_rows": 1,
        "empty_answers": 2,
        "null_answers": 1,
        "exact_duplicates": 1,
        "overlap": 1,
    }
    assert (
        fixes.num_changed == 3 + 2 + 2 + 1
    )  # controls, inputs, the mojibake that can be read again, escaped line feeds
    assert fixes.num_read == len(rows) == fixes.num_kept + fixes.num_changed + 6
    after = lines(look(out, against=conversations(tmp_path / "benchmark.jsonl")))
    before = lines(found)
    assert not {
        "unusable_rows",
        "empty_answers",
        "exact_duplicates",
        "overlap",
        "control_characters",
        "escaped_line_feeds",
        "null_inputs",
    } & set(after)
    assert len(after["mojibake"]) == 1
    assert len(after["null_answers"]) == len(before["null_answers"]) - 1  # N/A and None may be answers: they stay
    for kind in set(before) - {
        "mojibake",
        "null_answers",
        "unusable_rows",
        "empty_answers",
        "exact_duplicates",
        "overlap",
    } & set(after):
        assert kind in {"control_characters", "null_inputs"} or len(after[kind]) == len(before[kind])
    fixed = out.read_text(encoding="utf-8")
    assert "On dit café." in fixed
    assert "He said “not today” and left." in fixed
    assert "Heine\\nRilke" in fixed
    assert r"It is spelled harbour.\n\nThe word has an o" in fixed  # in JSON: two line feeds
    assert "nooutput" not in fixed


def test_no_row_is_no_trouble() -> None:
    found = audit([], Config(), None)
    assert (found.num_read, found.findings, found.lengths, found.sides) == (0, (), {}, {})


def test_findings_do_not_depend_on_the_order_of_clean_rows(tmp_path: Path) -> None:
    rows = clean_records(60)
    random.Random(1).shuffle(rows)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert look(tmp_path / "rows.jsonl").findings == ()


WORDING = (
    "You are a careful annotator for a boating magazine. Read the review below and say whether its author was pleased or "
    "displeased with the place. Answer with a single word, positive or negative, and do not explain yourself. Review: "
)
ADJECTIVES = ["quiet", "clean", "broken", "sunny", "old", "green", "salty", "crowded", "narrow", "shiny"]
NOUNS = ["buoy", "jetty", "pier", "boat", "harbour", "sail", "anchor", "rope", "deck", "galley"]


def asked_under_one_wording(reviews: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": WORDING + review},
                {"role": "assistant", "content": "positive" if number % 3 else "negative"},
            ]
        }
        for number, review in enumerate(reviews)
    ]


REVIEWS = [f"A {adjective} {noun}." for adjective in ADJECTIVES for noun in NOUNS]


def test_reviews_under_one_long_wording_are_no_near_duplicates_and_are_divided(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", asked_under_one_wording(REVIEWS))
    found = look(tmp_path / "rows.jsonl")
    assert (found.findings, found.clusters, found.dropped) == ((), (), {})
    assert found.sides["train"] > 60
    assert min(found.sides.values()) > 0


def test_rows_of_other_files_under_the_same_wording_overlap_only_where_what_differs_does(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", asked_under_one_wording(REVIEWS))
    others = [*[f"The {noun} was closed when we came." for noun in NOUNS], "A quiet buoy!"]
    write_rows(tmp_path / "benchmark.jsonl", asked_under_one_wording(others))
    found = look(tmp_path / "rows.jsonl", against=conversations(tmp_path / "benchmark.jsonl"))
    assert lines(found) == {"overlap": {1}}
    settings = [f"data.test_file={tmp_path / 'benchmark.jsonl'}", "data.validation_share=0"]
    checked = checking.check(str(tmp_path / "rows.jsonl"), config=load_config(None, settings)).audit
    (leak,) = (finding for finding in checked.findings if finding.kind.name == "leakage")
    assert leak.sources == (f"{tmp_path / 'benchmark.jsonl'}:11",)


def test_sides_of_a_check_are_those_of_a_run_whatever_it_is_compared_with(tmp_path: Path, byte_tokenizer: Any) -> None:
    """What wording is shared is a matter of the rows that are divided, not of other files."""
    from tuneful.encoding.prepare import prepare_data

    asked = "Describe the journey of a letter from the sender to the receiver in the days of the coach and its {}"
    rows = [record(asked.format(noun), "By coach.") for noun in NOUNS[:4]] + clean_records(60)
    write_rows(tmp_path / "rows.jsonl", rows)
    write_rows(tmp_path / "benchmark.jsonl", [record(asked.format(word), "Slowly.") for word in ADJECTIVES])
    config, encoder = load_config(None, ["data.max_length=4000"]), encoder_of(byte_tokenizer, "data.max_length=4000")
    prepared = prepare_data(read_data(str(tmp_path / "rows.jsonl")), encoder, config)
    found = look(
        tmp_path / "rows.jsonl",
        "data.max_length=4000",
        encoder=encoder,
        against=conversations(tmp_path / "benchmark.jsonl"),
    )
    assert list(found.sides.values()) == [len(prepared.train), len(prepared.validation), len(prepared.test)]


def test_a_near_duplicate_is_shown_by_what_differs_and_a_copy_by_what_follows_the_wording(tmp_path: Path) -> None:
    long = "The harbour was quiet, the crew of the ferry kind, and the old lighthouse open to all who came"
    reviews = [*REVIEWS, f"{long} early.", f"{long} late.", "A quiet buoy."]
    write_rows(tmp_path / "rows.jsonl", asked_under_one_wording(reviews))
    found = {finding.kind.name: finding for finding in look(tmp_path / "rows.jsonl").findings}
    (near,) = found["near_duplicates"].cases
    assert near.text.endswith(":101: ...all who came late ≠ ...all who came early")
    assert found["exact_duplicates"].cases[0].text.endswith(":1: ...yourself review a quiet buoy")


@pytest.mark.parametrize("method", ["grouped", "random"])
def test_grouped_is_advised_only_where_the_split_is_another(tmp_path: Path, method: str) -> None:
    rows = [one for one in clean_records(60) for _ in range(2)]
    near = "Describe the journey of a letter from the sender to {} receiver in the old days."
    rows += [record(near.format(word), f"Answer {word}.") for word in ("the", "its")]
    write_rows(tmp_path / "rows.jsonl", rows)
    found = look(tmp_path / "rows.jsonl", f"data.split={method}", "data.test_share=0.3")
    kinds = {finding.kind.name: finding.kind for finding in found.findings}
    text = " ".join(kind.why + kind.advice for kind in kinds.values())
    assert ("data.split=grouped" in text) == (method == "random")
    assert "near_duplicates" in kinds


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("look", "count")
]


def test_records_that_differ_in_a_thought_or_the_tools_alone_are_neither_copies_nor_contradictions(
    tmp_path: Path,
) -> None:
    def thinking(thought: str, tools: list[Any] | None = None) -> dict[str, Any]:
        answer = {"role": "assistant", "content": "A lantern, as a sailor would say.", "reasoning_content": thought}
        row: dict[str, Any] = {"messages": [{"role": "user", "content": "What hangs at the bow of a ferry?"}, answer]}
        return {**row, **({"tools": tools} if tools else {})}

    first, other = "Ferries show a light.", "It is dark at sea."
    rows = [thinking(first), thinking(other), thinking(first, TOOLS[:1]), thinking(first, TOOLS), thinking(first)]
    write_rows(tmp_path / "rows.jsonl", [*clean_records(20), *rows])
    found = look(tmp_path / "rows.jsonl")
    assert lines(found) == {"exact_duplicates": {25}}
    assert found.dropped == {24: "exact_duplicates"}
