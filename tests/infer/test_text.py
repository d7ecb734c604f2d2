"""Text while it is generated: nothing shown is taken back, no character is broken, no stop is ever seen."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.infer.text import AnswerText

STOPS = ("###", "\n\nEND", "⏹️")


def decode_bytes(token_ids):
    """A tokenizer whose tokens are bytes, written as any program writes broken UTF-8."""
    return bytes(token_ids).decode("utf-8", errors="replace")


class Pieces:
    """A tokenizer of given byte strings: a token may hold the end of one character and the beginning of the next."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def decode(self, token_ids):
        return b"".join(self.pieces[token_id] for token_id in token_ids).decode("utf-8", errors="replace")


def shown(decode, token_ids, stops=(), lead=""):
    """The pieces that a reader sees, and the text at the end."""
    text = AnswerText(decode, stops, lead)
    pieces = []
    for token_id in token_ids:
        pieces.append(text.push(token_id))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text.text


def cut(whole, stops=STOPS):
    """The answer in `whole`, by the definition: before the first stop, without outer white space."""
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    return whole[: min(ends, default=len(whole))].strip()


def split_into(data, num_pieces, seed):
    """`data` in `num_pieces` parts at random places."""
    places = sorted(random.Random(seed).sample(range(1, len(data)), num_pieces - 1))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.text(max_size=12), st.integers(0, 40))
def test_an_answer_that_is_cut_ends_in_a_whole_character(text, length):
    encoded = text.encode("utf-8", errors="ignore")[:length]
    answer = AnswerText(decode_bytes)
    pieces = [answer.push(byte) for byte in encoded]
    pieces.append(answer.finish(cut=True))
    assert "".join(pieces) == answer.text == encoded.decode("utf-8", errors="ignore").strip().rstrip("\ufffd")


def test_what_a_model_ended_with_by_itself_stays_as_it_is():
    for ending in ("�".encode(), "🌊".encode()[:2]):
        answer = AnswerText(decode_bytes)
        for byte in b"sea " + ending:
            answer.push(byte)
        answer.finish()
        assert answer.text == "sea �"
    answer = AnswerText(decode_bytes)
    for byte in b"sea " + "🌊".encode()[:3]:
        answer.push(byte)
    answer.finish(cut=True)
    assert answer.text == "sea"


@given(st.text(max_size=40), st.data())
def test_pieces_put_together_are_the_answer_however_its_bytes_are_cut_into_tokens(text, data):
    encoded = text.encode("utf-8", errors="ignore")
    places = sorted(data.draw(st.sets(st.integers(1, max(1, len(encoded) - 1)), max_size=len(encoded))))
    tokens = Pieces(encoded[start:stop] for start, stop in zip([0, *places], [*places, None], strict=True))
    pieces, final = shown(tokens.decode, range(len(tokens.pieces)))
    assert "".join(pieces) == final == encoded.decode().strip()


@given(st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_come_out_as_their_whole_would(token_ids):
    pieces, final = shown(decode_bytes, token_ids)
    assert "".join(pieces) == final == decode_bytes(token_ids).strip()
    assert all(not piece.startswith("\ufffd") or "\ufffd" in decode_bytes(token_ids) for piece in pieces)


def test_a_character_is_shown_when_its_last_byte_has_come():
    text = AnswerText(decode_bytes)
    assert [text.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def test_what_never_becomes_a_character_is_shown_once_text_goes_on():
    text = AnswerText(decode_bytes)
    assert [text.push(byte) for byte in b"a\xf0\x9fb"] == ["a", "", "", "\ufffdb"]


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("stop", ["### Instruction:", "\n\nHALT", "⏹️ halt"])
def test_a_stop_split_over_tokens_is_never_shown(stop, num_tokens):
    """Whatever stands before and after it in the tokens that hold its two ends."""
    for seed in range(60):
        parts = split_into(stop.encode(), num_tokens, seed)
        parts[0] = b" it. " + parts[0]
        parts[-1] += b" more"
        tokens = Pieces([b"Paris", b" is", *parts])
        pieces, final = shown(tokens.decode, range(len(tokens.pieces)), (stop,))
        assert "".join(pieces) == final == "Paris is it."


def test_what_only_begins_like_a_stop_is_shown_in_the_end():
    pieces, final = shown(decode_bytes, b"a ##", STOPS)
    assert pieces == ["a", "", "", "", " ##"]
    assert final == "a ##"


def test_a_stop_that_begins_again_inside_its_own_beginning_is_found():
    for text in ("x####", "x######", "x## ###y"):
        pieces, final = shown(decode_bytes, text.encode(), STOPS)
        assert "".join(pieces) == final == cut(text)


@given(st.lists(st.sampled_from(["#", "##", "\n", "\n\n", "EN", "D", "a", " ", "é", "⏹", "️"]), max_size=25))
def test_an_answer_is_what_stands_before_the_first_stop(parts):
    tokens = Pieces(part.encode() for part in parts)
    pieces, final = shown(tokens.decode, range(len(parts)), STOPS)
    assert "".join(pieces) == final == cut("".join(parts))
    for count in range(len(pieces)):
        assert final.startswith("".join(pieces[:count])), "something that was shown was taken back"


def test_white_space_around_an_answer_is_no_part_of_it():
    pieces, final = shown(decode_bytes, b" \n a b \n")
    assert final == "".join(pieces) == "a b"


def test_a_space_of_the_first_token_counts_for_the_tokens_after_it():
    """Tokenizers that mark words drop the mark at the start of what they decode, which a window must not repeat."""
    words = [f"w{index}" for index in range(100)]

    def decode(token_ids):
        return " ".join(words[token_id] for token_id in token_ids)

    pieces, final = shown(decode, range(100))
    assert "".join(pieces) == final == " ".join(words)


@pytest.mark.parametrize(
    ("whole", "answer"),
    [
        ("\n<think>\n\n</think>\n\nParis.", "Paris."),
        ("<think>\n\n</think>", ""),
        ("<think>\n\nhm", "<think>\n\nhm"),
        ("<thi", "<thi"),
        ("Paris.", "Paris."),
        ("<think>\n\n</think>###", ""),
    ],
)
def test_what_the_template_has_the_model_write_first_is_not_shown(whole, answer):
    pieces, final = shown(decode_bytes, whole.encode(), STOPS, "<think>\n\n</think>")
    assert "".join(pieces) == final == answer
