"""The compiled step on processors that lack what this one has, and on one that has a matrix unit besides."""

import pytest
from tests.infer import test_compiled as here
from tests.machine import needs
from tests.model.test_native import program

from tuneful.model import native
from tuneful.model.native.library import compiler


@needs("compiler")
@needs("x86")
@pytest.mark.parametrize("processor", ["avx2", "no-fma", "sse2", "no-openmp", "a matrix unit"])
def test_logits_are_those_of_each_row_alone_on_other_processors(processor, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEFUL_NATIVE", "1")  # on one thread too
    if processor == "a matrix unit":
        flags = "-mamx-tile -mamx-bf16"
        monkeypatch.setenv("CC", program(tmp_path / "cc", f'exec {compiler().path} "$@" {flags}'))
        monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path))
    else:
        monkeypatch.setenv("TUNEFUL_PROCESSOR", processor)
    native._attempt.cache_clear()
    try:
        assert native.describe().startswith("compiled by")
        if processor != "no-openmp":
            assert "matrix products" not in native.describe()  # those of training
        for case in here.CASES[::4]:
            for dtype in here.TOLERANCE:
                here.test_logits_are_those_of_each_row_alone(*case, dtype)
    finally:
        native._attempt.cache_clear()
