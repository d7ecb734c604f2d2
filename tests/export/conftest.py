"""What the tests of exports share."""

from functools import partial

import pytest

from tuneful.export import folder_check, formats, runtime
from tuneful.export.probes import probe_texts


@pytest.fixture
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export is tried with fewer texts and prompts: for what is not about them."""
    for module in (runtime, folder_check):
        monkeypatch.setattr(module, "probe_texts", partial(probe_texts, num=20))
    monkeypatch.setattr(formats, "MAX_PROMPTS", 3)
