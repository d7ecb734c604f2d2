"""A run that is cut off within the process, as if a signal had come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tuneful.runs import training
from tuneful.signals import Interrupted


@contextmanager
def cut_after_checkpoint(step: int) -> Iterator[None]:
    """Inside, a training is interrupted once its checkpoint of `step` is written; that it was is asserted."""
    own = training._save_checkpoint

    def cut(run: Any, now: Any) -> None:
        own(run, now)
        if now.state.step == step:
            raise Interrupted(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_save_checkpoint", cut)
        with pytest.raises(Interrupted):
            yield
