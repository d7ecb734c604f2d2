"""What a family's forward calls its arguments."""

from typing import Any

import pytest
from transformers import GenerationMixin

from tuneful.model.forward import cache_argument


class Named:
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Renamed:
    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


class HandsOn:
    def forward(self, input_ids: Any, **others: Any) -> None: ...


@pytest.mark.parametrize("of_transformers", ["past_key_values", "cache"])
def test_a_cache_has_the_name_that_the_forward_gives_it_or_else_that_of_this_transformers(
    of_transformers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = {"past_key_values": lambda self, past_key_values: None, "cache": lambda self, cache: None}
    monkeypatch.setattr(GenerationMixin, "prepare_inputs_for_generation", prepare[of_transformers])
    assert cache_argument(Named()) == "past_key_values"
    assert cache_argument(HandsOn()) == of_transformers
    if of_transformers == "cache":
        assert cache_argument(Renamed()) == "cache"
