"""Replay: what may be replayed, and which of it joins which step."""

import json

import pytest

from tuneful.batch.order import all_steps, replay_indices
from tuneful.encoding.encode import Encoder
from tuneful.encoding.replay import read_replay
from tuneful.encoding.template import find_template
from tuneful.encoding.tokens import TextEncoder
from tuneful.errors import DataError
from tuneful.types import Conversation, Turn

TEXT = "The tide comes in.\nIt goes out.\n\n\nA second passage,\n\n x\n"


@pytest.fixture
def encoder(byte_tokenizer):
    return Encoder(TextEncoder(byte_tokenizer, find_template("alpaca")), max_length=300)


def asked(instruction):
    return Conversation("", (Turn(instruction, "", "an answer"),), "test.json:1")


def test_records_are_encoded_as_training_encodes_them_and_every_row_is_counted(tmp_path, encoder):
    rows = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "three")]
    rows += [{"instruction": "Say too much.", "output": "x" * 400}, {"instruction": "no answer"}]
    (tmp_path / "general.json").write_text(json.dumps(rows))
    replay = read_replay(str(tmp_path / "general.json"), 0.1, encoder, [asked("say TWO!"), asked("Say four.")])
    assert [example.source.rpartition("/")[2] for example in replay.examples] == ["general.json:1", "general.json:1#3"]
    assert (replay.num_refused, replay.num_held_out, replay.num_read) == (2, 1, 5)
    one = Conversation("", (Turn("Say one.", "", "one"),), "")
    assert replay.examples[0].token_ids.tolist() == encoder.example(one).token_ids.tolist()
    assert replay.examples[0].weights.tolist() == encoder.example(one).weights.tolist()


def test_text_is_cut_into_passages_that_are_trained_on_whole(tmp_path, encoder):
    file = tmp_path / "general.txt"
    file.write_text(TEXT)
    replay = read_replay(str(file), 0.1, encoder, [])
    assert [encoder.text.decode(example.token_ids) for example in replay.examples] == [
        "The tide comes in.\nIt goes out.",
        "A second passage,",
        " x",
    ]
    assert [example.source for example in replay.examples] == [f"{file}:1", f"{file}:5", f"{file}:7"]
    for example in replay.examples:
        assert example.weights.tolist() == [0.0] + [1.0] * (len(example) - 1)
        assert encoder.text.end_token_id not in example.token_ids


def test_a_long_passage_becomes_several_and_nothing_of_it_is_lost(tmp_path, encoder):
    file = tmp_path / "long.txt"
    file.write_text("word " * 400)
    replay = read_replay(str(file), 0.1, encoder, [])
    assert max(map(len, replay.examples)) == 300
    assert "".join(encoder.text.decode(example.token_ids) for example in replay.examples) == "word " * 400


@pytest.mark.parametrize("content", ["", "\n \n", None])
def test_a_text_that_gives_nothing_is_refused(content, tmp_path, encoder):
    if content is not None:
        (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"data\.replay"):
        read_replay(str(tmp_path / "a.txt"), 0.1, encoder, [])


def test_what_is_all_asked_in_the_test_set_leaves_nothing(tmp_path, encoder):
    (tmp_path / "same.json").write_text(json.dumps([{"instruction": "Say one.", "output": "one"}]))
    with pytest.raises(DataError, match="of 1 rows 0 cannot be used and 1 stand in the validation or test set"):
        read_replay(str(tmp_path / "same.json"), 0.1, encoder, [asked("Say one.")])


@pytest.mark.parametrize("ratio", [0.05, 0.29, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("batch_size", [1, 8, 10])
def test_replayed_examples_come_at_the_ratio_each_as_often_as_another(ratio, batch_size):
    def joined(seed):
        return [
            replay_indices(7, ratio, seed, first, min(first + batch_size, 206)) for first in range(0, 206, batch_size)
        ]

    seen = 0
    for step, indices in enumerate(joined(0), start=1):
        seen += len(indices)
        assert seen == int(round(ratio * min(step * batch_size, 206), 6))
    counts = [sum(indices.count(index) for indices in joined(0)) for index in range(7)]
    assert max(counts) - min(counts) <= 1
    assert joined(0) == joined(0) != joined(1)


def test_what_is_replayed_comes_in_an_order_of_its_own():
    assert next(all_steps(20, 20, 0, 1)) != replay_indices(20, 1.0, 0, 0, 20)
    assert sorted(replay_indices(20, 1.0, 0, 0, 20)) == list(range(20))
