"""The kernels built for ARM (armv8, NEON), and run on an emulated one: what they compute is what they compute here."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.machine import needs

from tuneful.model.native import KINDS
from tuneful.model.native import library as libraries
from tuneful.model.native.compiler import _ARITHMETIC, INSTRUCTIONS, arguments

PROGRAM = Path(__file__).parents[1] / "doubles" / "kernels_main.c"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The same program for ARM, one thread and two, and for this machine."""
    folder = tmp_path_factory.mktemp("arm")
    arm = ["aarch64-linux-gnu-gcc", "-static", *INSTRUCTIONS["armv8"]]
    made = {"here": [libraries.compiler().path, "-fopenmp"], "arm": [*arm, "-fopenmp"], "arm, one thread": arm}
    for name, line in made.items():
        given = ["-std=gnu11", "-O2", *arguments(_ARITHMETIC), f"-I{libraries.HERE}", str(PROGRAM), "-lm"]
        subprocess.run([*line, *given, "-o", folder / name], check=True)
    return folder


@needs("arm")
@needs("compiler")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_an_emulated_arm_computes_what_this_processor_computes(programs, dtype):
    emulator = [shutil.which("qemu-aarch64-static") or "qemu-aarch64"]
    wanted, found, on_one_thread = (
        np.frombuffer(subprocess.run([*line, str(KINDS[dtype])], check=True, capture_output=True).stdout)
        for line in (
            [programs / "here"],
            [*emulator, programs / "arm"],
            [*emulator, programs / "arm, one thread"],
        )
    )
    assert len(wanted) > 5_000
    assert np.isfinite(wanted).all()
    assert np.array_equal(found, on_one_thread)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
