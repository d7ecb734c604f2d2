"""Both sides of a pair are encoded as the record that each would be alone, over one prompt; kept on disk, shown, divided."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.doubles import written_weights as oracle

from tuneful.config import Config, load_config
from tuneful.data.pairs import open_reader
from tuneful.data.read import stream_data
from tuneful.data.split import normal_prompt
from tuneful.encoding import prepare
from tuneful.encoding.encode import Encoder
from tuneful.encoding.prepare import Dataset, describe, load_encoder, prepare_data
from tuneful.encoding.replay import read_replay
from tuneful.encoding.show import as_page, bracketed, described, shown_record
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.types import Conversation, Example, sides_of

ENOUGH = 1_000_000


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def meant(row: Any, objective: str = "dpo") -> Conversation:
    found = open_reader("auto", None, objective).read(row, "a:1")
    assert not isinstance(found, str), found
    return found.conversation


def encoded(encoder: Encoder, row: Any, objective: str = "dpo") -> Example:
    example = encoder.example(meant(row, objective))
    assert isinstance(example, Example), example
    return example


def text_of(ids: Any, text: TextEncoder, tokenizer: Any) -> bytes:
    return b"".join(oracle.bytes_of(token_id, tokenizer, text) for token_id in ids.tolist())


def random_pair(rng: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A pair, and its two sides as plain records."""

    def said() -> str:
        while not (text := oracle.said(rng)).strip():
            pass
        return text

    asked, chosen, rejected = said(), said(), said()
    if rng.random() < 0.2:
        rejected = chosen + rejected
    if rng.random() < 0.1:
        rejected = chosen
    if rng.random() < 0.5:
        before: list[dict[str, Any]] = [{"role": "system", "content": said()}] if rng.random() < 0.5 else []
        for _ in range(rng.randrange(3)):
            before += [user(said()), bot(said())]
        before.append(user(asked))
        sides = [{"messages": [*before, bot(answer)]} for answer in (chosen, rejected)]
        if rng.random() < 0.5:
            return {"prompt": before, "chosen": [bot(chosen)], "rejected": [bot(rejected)]}, sides
        return {"chosen": sides[0]["messages"], "rejected": sides[1]["messages"]}, sides
    flat = {"instruction": asked, "input": rng.choice(("", said()))}
    return {**flat, "chosen": chosen, "rejected": rejected}, [{**flat, "output": one} for one in (chosen, rejected)]


@pytest.mark.parametrize("name", oracle.TEMPLATES)
def test_each_side_is_byte_for_byte_the_record_that_it_would_be_alone(name: str) -> None:
    tokenizer = oracle.byte_tokenizer()
    text = TextEncoder(tokenizer, oracle.own_template(tokenizer, name))
    rng = random.Random(name)
    # What prompts weigh, and which turns are trained, is for SFT: of a pair only what follows the prompt is.
    pairs, alone = Encoder(text, ENOUGH, prompt_weight=0.5), Encoder(text, ENOUGH, last_turn=True)
    for _ in range(40):
        row, plain = random_pair(rng)
        example = encoded(pairs, row)
        assert example.rejected is not None
        for side, record in zip((example, example.rejected), plain, strict=True):
            wanted = encoded(alone, record, "sft")
            assert side.token_ids.tolist() == wanted.token_ids.tolist()
            assert text_of(side.token_ids, text, tokenizer) == text_of(wanted.token_ids, text, tokenizer)
            assert side.weights.tolist() == wanted.weights.tolist()
            assert side.seams_apart == wanted.seams_apart
            assert side.token_ids[-1] in text.stop_token_ids or name == "file"
            assert side.weights[-1] == 1
        num = example.num_prompt_tokens
        assert num == example.rejected.num_prompt_tokens > 0
        assert example.token_ids[:num].tolist() == example.rejected.token_ids[:num].tolist()
        assert not example.weights[:num].any()
        assert not example.rejected.weights[:num].any()


@pytest.fixture
def chatml(byte_tokenizer: Any) -> TextEncoder:
    return TextEncoder(byte_tokenizer, oracle.own_template(byte_tokenizer, "chatml"))


LONG = {"prompt": "Say " + "something " * 20, "chosen": "yes " * 10, "rejected": "no, not at all " * 10}


def test_a_weight_multiplies_both_sides(chatml: TextEncoder) -> None:
    found = open_reader("auto", {"weight": "weight"}, "dpo").read({**LONG, "weight": 2}, "a:1")
    assert not isinstance(found, str)
    example = Encoder(chatml, ENOUGH).example(found.conversation)
    assert isinstance(example, Example)
    assert example.rejected is not None
    assert set(example.weights.tolist()) == set(example.rejected.weights.tolist()) == {0, 2}


def test_a_label_goes_with_its_record_of_which_only_the_answer_is_trained(chatml: TextEncoder) -> None:
    row = {"messages": [user("a"), bot("b"), user("c"), bot("d")], "label": 0}
    example = encoded(Encoder(chatml, ENOUGH, prompt_weight=1), row, "kto")
    assert example.label is False
    assert example.rejected is None
    assert example.weights.sum() == len(example) - example.num_prompt_tokens
    assert encoded(Encoder(chatml, ENOUGH), {**row, "label": 1}, "kto").label is True


def test_a_long_pair_is_refused_or_cut_on_both_sides_and_never_to_nothing(chatml: TextEncoder) -> None:
    whole = encoded(Encoder(chatml, ENOUGH), LONG)
    assert whole.rejected is not None
    num_prompt, num_chosen, num_rejected = whole.num_prompt_tokens, len(whole), len(whole.rejected)
    assert num_chosen < num_rejected
    refused = Encoder(chatml, num_rejected - 1).example(meant(LONG))
    assert isinstance(refused, str)
    assert refused.startswith("the rejected side: ")
    assert "data.max_length" in refused
    for limit in (num_rejected - 1, num_chosen - 1, num_prompt + 1):
        cut = encoded(Encoder(chatml, limit, on_long="cut_response"), LONG)
        assert cut.rejected is not None
        assert (cut.cut, cut.rejected.cut) == (num_chosen > limit, True)
        assert min(cut.weights.sum(), cut.rejected.weights.sum()) >= 1
        assert len(cut.rejected) == limit
    for on_long in ("cut_response", "refuse"):
        assert isinstance(Encoder(chatml, num_prompt, on_long=on_long).example(meant(LONG)), str)


def test_a_prompt_is_cut_alike_for_both_sides(chatml: TextEncoder) -> None:
    whole = encoded(Encoder(chatml, ENOUGH), LONG)
    assert whole.rejected is not None
    for limit in range(len(whole.rejected) - whole.num_prompt_tokens + 20, len(whole.rejected), 9):
        cut = encoded(Encoder(chatml, limit, on_long="cut_input"), LONG)
        assert cut.rejected is not None
        assert max(len(cut), len(cut.rejected)) <= limit
        assert cut.num_input_cut == cut.rejected.num_input_cut == len(whole) - len(cut) > 0
        num = cut.num_prompt_tokens
        assert cut.token_ids[:num].tolist() == cut.rejected.token_ids[:num].tolist()
        assert cut.token_ids[num:].tolist() == whole.token_ids[whole.num_prompt_tokens :].tolist()
        assert not cut.cut
    none = Encoder(chatml, 40, on_long="cut_input").example(meant(LONG))
    assert isinstance(none, str)
    assert "data.max_length=40" in none


def thinking(thought: str, answer: str) -> dict[str, str]:
    return {**bot(answer), **({"reasoning_content": thought} if thought else {})}


THOUGHTS = [
    ("Hm, so it is.", "No, it is not."),
    ("Hm, yes.", ""),
    ("", "Hm."),
    ("The same.", "The same."),
    ("Same, but", "Same"),
]


@pytest.mark.parametrize("thoughts", THOUGHTS)
def test_thoughts_that_are_context_may_differ_and_weigh_nothing_in_a_pair_that_is_cut_and_in_one_that_is_not(
    chatml: TextEncoder, thoughts: tuple[str, str]
) -> None:
    asked = [user("Say " + "something " * 20)]
    row = {"prompt": asked, "chosen": [thinking(thoughts[0], "yes")], "rejected": [thinking(thoughts[1], "no")]}
    whole = encoded(Encoder(chatml, ENOUGH, train_reasoning=False), row)
    assert whole.rejected is not None
    alone = [Encoder(chatml, ENOUGH, train_reasoning=False).example(side) for side in sides_of(meant(row))]
    limit = max(len(whole), len(whole.rejected)) - 60
    cut = encoded(Encoder(chatml, limit, on_long="cut_input", train_reasoning=False), row)
    assert (cut.num_input_cut > 0, max(map(len, sides_of(cut))) <= limit) == (True, True)
    for example in (whole, cut):
        for side, wanted, answer in zip(sides_of(example), alone, ("yes", "no"), strict=True):
            assert isinstance(wanted, Example)
            assert bracketed(shown_record(replace(side, rejected=None), chatml).tokens).count("⟦") == 1
            trained = chatml.token_text(side.token_ids[side.weights > 0].tolist())
            assert trained == f"{answer}<|im_end|>"
            assert example is cut or side.token_ids.tolist() == wanted.token_ids.tolist()
        first, other = sides_of(example)
        num = first.num_prompt_tokens
        assert num == other.num_prompt_tokens > 0
        assert first.token_ids[:num].tolist() == other.token_ids[:num].tolist()


def test_a_long_pair_of_which_the_template_cannot_render_a_side_is_refused_by_name(chatml: TextEncoder) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look", "arguments": {}}]}
    row = {"prompt": [user("Say " + "something " * 20)], "chosen": [bot("yes")], "rejected": [call]}
    found = Encoder(chatml, 200, on_long="cut_input").example(meant(row))
    assert isinstance(found, str)
    assert found.startswith("the rejected side: template.name=chatml: the template has no tool_calls")


def test_sides_that_a_template_renders_with_another_prompt_are_refused(chatml: TextEncoder) -> None:
    """No built-in template does it: a chat template may, whose rendering of a turn depends on the turns after it."""
    encoder, pair = Encoder(chatml, ENOUGH), meant(LONG)
    chosen, other = (encoded(encoder, {"prompt": asked, "completion": "yes"}, "sft") for asked in ("one", "two"))
    found = encoder._preference(pair, chosen, other)
    assert found == "the two sides of the pair do not begin with the same prompt under this template"
    assert isinstance(encoder._preference(pair, chosen, chosen), Example)


def test_sides_that_part_at_an_earlier_answer_have_the_prompt_before_it(chatml: TextEncoder) -> None:
    row = {"chosen": [user("1"), bot("a"), user("2"), bot("b")], "rejected": [user("1"), bot("x")]}
    example = encoded(Encoder(chatml, ENOUGH, last_turn=True), row)
    assert example.rejected is not None
    assert bracketed(shown_record(example, chatml).tokens).count("⟦") == 2
    assert example.num_prompt_tokens == example.rejected.num_prompt_tokens


# A data set of pairs

ROWS = [
    *(
        {
            "prompt": f"Name {number} é🙂 of {number * 7}",
            "chosen": f"It is {number}.",
            "rejected": f"Who knows {number}? Not me.",
        }
        for number in range(40)
    ),
    {"prompt": [user("a"), bot("b"), user("c")], "chosen": [bot("d")], "rejected": [bot("e " * 90)]},
    {"prompt": "no pair", "chosen": "x", "rejected": ""},
    {"prompt": "long " * 60, "chosen": "x", "rejected": "y"},
]
SETTINGS = ["data.on_error=skip", "data.max_length=200", "data.on_long=cut_response", "train.objective=dpo"]


def data_set(
    folder: Path, tokenizer: Any, rows: list[Any], cache: Path | None, *settings: str
) -> tuple[Dataset, Encoder, Config]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config(None, [*SETTINGS, *settings])
    encoder = load_encoder(tokenizer, config)
    stream = stream_data(str(path), config.data, config.train.objective)
    return prepare_data(stream, encoder, config, cache), encoder, config


def values(example: Example | None) -> Any:
    if example is None:
        return None
    plain = (
        example.source,
        example.token_ids.tolist(),
        example.weights.tolist(),
        example.num_prompt_tokens,
        example.cut,
    )
    return (*plain, example.num_input_cut, example.label, values(example.rejected))


LABELLED = [{"prompt": f"ask {n}", "completion": f"say {n}", "label": n % 2} for n in range(30)]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_what_is_stored_is_what_is_held_in_memory(
    tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY", 4)
    monkeypatch.setattr(prepare, "_AT_ONCE", 9)
    rows = ROWS if objective == "dpo" else [*ROWS, *LABELLED]
    made = [
        data_set(tmp_path, byte_tokenizer, rows, cache, f"train.objective={objective}")
        for cache in (None, tmp_path / "cache", tmp_path / "cache")
    ]
    (held, encoder, config), *stored = made
    for dataset, _, _ in stored:
        for name in ("train", "validation", "test"):
            one, other = getattr(held, name), getattr(dataset, name)
            assert [values(example) for example in one.examples] == [values(example) for example in other.examples]
            assert [(record.raw, record.conversation) for record in one.records] == [
                (record.raw, record.conversation) for record in other.records
            ]
            for size in ("num_tokens", "num_prompt_tokens", "num_trained", "num_input_cut", "cut"):
                assert np.array_equal(getattr(one.sizes, size), getattr(other.sizes, size)), size
        assert list(dataset.refused) == list(held.refused)
        assert describe(dataset, encoder, config) == describe(held, encoder, config)
    if objective == "dpo":
        assert (held.num_read, held.num_used, len(held.refused)) == (len(ROWS), 41, 2)
    else:  # each pair is two records
        assert held.num_read == held.num_used + len(held.refused) == 2 * 42 + 1 + 30


def test_another_objective_is_another_store(
    tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY", 4)
    first, _, _ = data_set(tmp_path, byte_tokenizer, ROWS, tmp_path / "cache")
    second, _, _ = data_set(tmp_path, byte_tokenizer, ROWS, tmp_path / "cache", "train.objective=kto")
    assert all(example.rejected is not None for example in first.train.examples)
    assert all(example.label is not None for example in second.train.examples)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_the_file_of_a_side_is_read_under_the_objective_too(
    tmp_path: Path, byte_tokenizer: Any, objective: str
) -> None:
    given = tmp_path / "given.jsonl"
    given.write_text(
        "".join(json.dumps({"prompt": f"Ask {n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(3))
    )
    settings = [f"train.objective={objective}", f"data.validation_file={given}", f"data.test_file={given}"]
    dataset, _, _ = data_set(tmp_path, byte_tokenizer, ROWS, None, *settings)
    assert not [row for row in dataset.refused if row.source.startswith(str(given))]
    for side in (dataset.validation, dataset.test):
        assert len(side) == (3 if objective == "dpo" else 6)
        assert all((one.rejected is None) == (one.label is not None) for one in side.examples)


def test_the_weight_of_a_file_is_that_of_both_sides(tmp_path: Path, byte_tokenizer: Any) -> None:
    dataset, _, _ = data_set(tmp_path, byte_tokenizer, ROWS[:40], None, "data.weights=rows.jsonl=3")
    for example, conversation in zip(dataset.train.examples, dataset.train.conversations, strict=True):
        assert [one.weight for one in sides_of(conversation)] == [3.0, 3.0]
        assert [float(one.weights.max()) for one in sides_of(example)] == [3.0, 3.0]


def test_sizes_count_the_prompt_once_and_both_answers(tmp_path: Path, byte_tokenizer: Any) -> None:
    dataset, encoder, config = data_set(tmp_path, byte_tokenizer, ROWS, None)
    expected = trained = 0
    for example in dataset.train.examples:
        assert example.rejected is not None
        expected += len(example) + len(example.rejected) - example.num_prompt_tokens
        trained += int((example.weights > 0).sum() + (example.rejected.weights > 0).sum())
    document = describe(dataset, encoder, config)
    assert (document.train_tokens.record, document.train_tokens.trained) == (expected, trained)
    assert document.num_cut <= 1
    shown = document.shown[0]
    first = dataset.train.examples[0].rejected
    assert first is not None
    assert shown.rejected is not None
    assert [token.id for token in shown.rejected] == first.token_ids.tolist()


def test_one_prompt_is_never_on_two_sides_of_the_split(tmp_path: Path, byte_tokenizer: Any) -> None:
    rows = [{"prompt": f"Ask {n % 12} of {n % 12}", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(60)]
    for objective in ("dpo", "kto"):
        dataset, _, _ = data_set(tmp_path, byte_tokenizer, rows, None, f"train.objective={objective}")
        prompts = [
            set(map(normal_prompt, side.conversations)) for side in (dataset.train, dataset.validation, dataset.test)
        ]
        assert all(prompts)
        assert sum(map(len, prompts)) == len(set.union(*prompts)) == 12


def test_both_sides_are_shown_with_what_is_trained(chatml: TextEncoder) -> None:
    row = {"prompt": "Hi <b>", "chosen": "Yes.", "rejected": "No </b>."}
    record = shown_record(encoded(Encoder(chatml, ENOUGH), row), chatml)
    assert bracketed(record.tokens).endswith("⟦Yes.<|im_end|>⟧")
    assert bracketed(record.rejected_answer) == "⟦No </b>.<|im_end|>⟧"
    assert described(record).startswith("chosen ")
    assert "; rejected " in described(record)
    page = as_page([record], title="x")
    assert page.count("rejected, after the same prompt") == 1
    assert "</b>" not in page
    label = shown_record(
        encoded(Encoder(chatml, ENOUGH), {"prompt": "a", "completion": "b", "label": 0}, "kto"), chatml
    )
    assert described(label).endswith("trained, not wanted")


def test_pairs_are_replayed_under_an_objective_of_pairs(tmp_path: Path, chatml: TextEncoder) -> None:
    path = tmp_path / "more.jsonl"
    rows = [{"prompt": f"Ask {n}", "chosen": "a", "rejected": "b"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [meant(rows[1])]
    replay = read_replay(str(path), 0.1, Encoder(chatml, ENOUGH), held_out, "dpo")
    assert (len(replay.examples), replay.num_held_out, replay.num_refused) == (4, 1, 0)
    assert all(example.rejected is not None for example in replay.examples)
    with pytest.raises(DataError, match=r"train\.objective=dpo trains on preferences"):
        read_replay("some.txt", 0.1, Encoder(chatml, ENOUGH), [], "dpo")
