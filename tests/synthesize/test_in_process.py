"""A model in this process: every request has its own seed, or its role's, and a reply that was cut is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tuneful
from tuneful.infer.generate import Generated
from tuneful.judge.client import NoReply, Reply
from tuneful.synthesize import in_process
from tuneful.synthesize.asking import Ask
from tuneful.synthesize.opened import open_asker
from tuneful.synthesize.prompts import plain_question, sampled


def test_requests_are_generated_under_their_own_seed_and_cut_replies_are_none(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []

    def generated(model: Any, prompts: Any, config: Any, stops: Any, **options: Any) -> Any:
        numbers.extend(options["numbers"])
        return [
            (index, Generated((5, 6), "length" if number == 8 else "stop", f"Text {number}."))
            for index, number in enumerate(options["numbers"])
        ]

    monkeypatch.setattr(in_process, "generate", generated)
    config = tuneful.load_config(overrides=["judge.seed=41", "model.dtype=float32"])
    asker = open_asker(f"model:{tiny_llama}", config, lambda sentence: None)
    question = plain_question("", (), "Name a lake.")
    asks = [Ask(f"{seed}", "teacher", sampled(question, 0.5, seed)) for seed in (7, 8, 0)]
    found: dict[int, Any] = {}
    asker.ask_all([*asks, Ask("judge", "judge", question)], found.update)
    assert sorted(numbers) == [0, 7, 8, 41]
    assert [found[index].text for index in (0, 2, 3)] == ["Text 7.", "Text 0.", "Text 41."]
    assert all(isinstance(found[index], Reply) for index in (0, 2, 3))
    assert found[1] == NoReply("the reply was cut at 2 tokens", final=True)
