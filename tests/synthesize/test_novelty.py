"""A prompt is new where nothing known says the same or nearly so; what the index finds is what comparing all would find."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuneful.data.duplicates import THRESHOLD
from tuneful.data.similarity import fields_of, similarity
from tuneful.synthesize.novelty import Known
from tuneful.synthesize.work import prompt_of_task

WORDS = st.lists(st.sampled_from(["bread", "is", "made", "of", "flour", "and", "water", "in", "45", "km"]), max_size=12)


def test_case_punctuation_and_a_changed_word_make_no_new_prompt_and_another_number_does() -> None:
    known = Known()
    known.add(prompt_of_task("Convert 45 km, as exactly as you can, to miles.", ""), "first")
    assert known.find(prompt_of_task("convert 45 KM as exactly as you can to miles", "")) == "first"
    assert known.find(prompt_of_task("Convert 45 km, as exactly as you can, to mile.", "")) == "first"
    assert known.find(prompt_of_task("Convert 46 km, as exactly as you can, to miles.", "")) is None
    assert known.find(prompt_of_task("Convert 45 km, as exactly as you can, to miles.", "A table.")) is None


@given(st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=12))
def test_the_index_finds_what_comparing_everything_finds(tasks: list[tuple[list[str], list[str]]]) -> None:
    prompts = [prompt_of_task(" ".join(one), " ".join(other)) for one, other in tasks]
    known = Known()
    for number, prompt in enumerate(prompts):
        like = [
            earlier
            for earlier in range(number)
            if prompts[earlier] == prompt
            or similarity(fields_of(prompt, []), fields_of(prompts[earlier], []), THRESHOLD) >= THRESHOLD
        ]
        found = known.find(prompt)
        assert (found is None) == (not like)
        assert found is None or int(found) in like
        known.add(prompt, str(number))
