"""Lesser processors than the one at hand: what the kernels compute on them, and what is chosen there."""

import os
import subprocess
import sys

import pytest
import torch
from tests.contracts import test_trie_is_exact as trie
from tests.doubles.engine import random_records, tiny_model, train_config
from tests.machine import needs, require
from tests.model import test_elementwise, test_native, test_nf4, test_norms
from tests.model.test_native import attention_and_gradients, loss_and_gradient, trained_tensors
from tools import processors as tool

from tuneful.batch.trie import build_trie
from tuneful.errors import ConfigError
from tuneful.model import native, processor
from tuneful.model.native import compiler as compilers
from tuneful.model.native.compiler import INSTRUCTIONS
from tuneful.train.update import NativeUpdate

CPU = torch.device("cpu")
LESSER = ("avx2", "no-fma", "sse2", "no-openmp")
SERVER = {
    "avx2",
    "fma3",
    "f16c",
    "bmi",
    "bmi2",
    "lzcnt",
    "avx512_f",
    "avx512_cd",
    "avx512_bw",
    "avx512_dq",
    "avx512_vl",
}


@pytest.fixture(autouse=True)
def the_processor_at_hand(monkeypatch):
    """Whatever lesser one all the tests run on."""
    monkeypatch.delenv("TUNEFUL_PROCESSOR", raising=False)


@pytest.fixture(params=LESSER)
def lesser(request, monkeypatch):
    """Each lesser processor, one after the other: the kernels are compiled for it, and run."""
    if request.param != "no-openmp":
        require("x86")
    monkeypatch.setenv("TUNEFUL_NATIVE", "1")
    before = computed()
    monkeypatch.setenv("TUNEFUL_PROCESSOR", request.param)
    assert f"(TUNEFUL_PROCESSOR: {request.param.replace(',', ', ')})" in native.describe()
    return before


def computed():
    """Attention, loss, update, forward and backward, in float64."""
    batch = build_trie(random_records(20))
    tensors = trained_tensors()
    update = NativeUpdate(tensors, train_config(), True, test_native.library())
    norm = update.squared_norm()
    update.step(1, 1e-2, 2.0)
    exact = [*attention_and_gradients(batch, torch.float64), *loss_and_gradient(torch.float64)]
    return exact, [torch.tensor(norm), *(tensor.master for tensor in tensors)]


@pytest.mark.usefixtures("compiled")
def test_a_lesser_processor_computes_the_same(lesser):
    for found, wanted, tolerance in zip(computed(), lesser, (1e-12, 1e-6), strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("compiled", "lesser")
def test_a_lesser_processor_keeps_the_contracts_of_the_kernels(monkeypatch):
    """Each of a kernel's own tests once, and a model's loss and gradient over tries."""
    for dtype in test_elementwise.TOLERANCE:
        test_norms.test_a_norm_and_its_gradient_are_those_of_the_formula(1.0, (1, 7, 4, 8), dtype)
        test_norms.test_a_norm_and_its_gradient_are_those_of_the_formula(0.0, (3, 576), dtype)
        test_elementwise.test_a_rotation_and_its_gradient_are_those_of_the_formula(33, 2, 6, dtype)
        test_elementwise.test_a_gate_and_its_gradient_are_those_of_the_formula((1, 7, 1000), dtype, torch.nn.SiLU())
    for name in test_nf4.GOLDEN:
        test_nf4.test_codes_and_scales_are_those_of_bitsandbytes(name, "1", monkeypatch)
        test_nf4.test_what_the_codes_stand_for_is_level_times_scale_rounded_once(name, torch.bfloat16, "1", monkeypatch)
    for dtype in (torch.float32, torch.float64):
        test_native.test_logits_far_apart_neither_overflow_nor_lose_the_largest(1000, dtype)
    test_native.test_every_weight_is_rounded_to_bfloat16_as_torch_rounds_it()
    test_native.test_logits_that_are_not_finite_give_a_loss_that_is_not()
    for family, dtype in (("llama", torch.float64), ("gemma3", torch.float32)):
        trie.check(tiny_model(family, dtype), random_records(6, prompt_weight=0.5))


@pytest.mark.usefixtures("compiled")
def test_on_one_thread_and_on_several_the_kernels_give_the_same_bits(monkeypatch):
    monkeypatch.setenv("TUNEFUL_NATIVE", "1")
    several = computed()
    assert native._library().has_threads()
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "no-openmp")
    one = computed()
    assert not native._library().has_threads()
    for group, other in zip(several, one, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(group, other, strict=True))


def test_the_tests_are_run_on_each_lesser_processor_with_its_word(capfd, monkeypatch):
    for word in tool.PROCESSORS:
        monkeypatch.setenv("TUNEFUL_PROCESSOR", word)
        assert processor.pretended()
    code, _, said = tool.run("avx2", ["--version"])
    assert code == 0
    assert said.startswith("pytest ")
    assert "==> TUNEFUL_PROCESSOR=avx2 pytest --version" in capfd.readouterr().out


# What is chosen


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        (
            "x86_64",
            SERVER | {"avx512_bf16"},
            ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3", "x86-64-v3-no-fma", "x86-64"],
        ),
        ("AMD64", SERVER, ["x86-64-v4", "x86-64-v3", "x86-64-v3-no-fma", "x86-64"]),
        ("x86_64", SERVER - {"avx512_f"}, ["x86-64-v3", "x86-64-v3-no-fma", "x86-64"]),
        ("x86_64", SERVER - {"avx512_f", "fma3"}, ["x86-64-v3-no-fma", "x86-64"]),
        ("x86_64", {"sse2"}, ["x86-64"]),
        ("aarch64", {"neon", "bf16"}, ["armv8"]),
        ("arm64", {"neon"}, ["armv8"]),
        ("riscv64", set(), []),
    ],
)
def test_the_instructions_that_run_are_those_whose_features_are_there(machine, features, expected):
    assert list(processor.instructions_of(machine, features)) == expected


def test_a_matrix_unit_comes_first_where_there_is_one():
    features = SERVER | {"avx512_bf16", "amx_tile", "amx_bf16"}
    assert processor.instructions_of("x86_64", features)[0] == "x86-64-v4-amx"


def test_each_set_of_instructions_has_its_flags_and_no_flags_are_of_none():
    assert {*processor.X86_LEVELS, "armv8"} == INSTRUCTIONS.keys()
    assert list(processor.X86_LEVELS) == [name for name in INSTRUCTIONS if name != "armv8"]
    assert set(compilers.IN_A_WHEEL) <= INSTRUCTIONS.keys()


@needs("x86")
def test_of_several_words_the_least_processor_counts(monkeypatch):
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "avx2, no-fma no-compiler")
    found = processor.processor()
    assert found.instructions == found.runs[0]
    assert found.instructions in ("x86-64-v3-no-fma", "x86-64")
    assert not found.has_compiler
    assert found.has_threads
    assert processor.settings_of_torch()["ATEN_CPU_CAPABILITY"] == "default"


def test_a_word_that_nobody_knows_is_refused_with_those_that_are_known(monkeypatch):
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "avx3")
    with pytest.raises(
        ConfigError, match=r"`TUNEFUL_PROCESSOR`: 'avx3' is no lesser processor; known are avx512, avx2"
    ):
        native.kernels(CPU, torch.float32)


def test_a_lesser_processor_of_x86_is_refused_on_another(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(ConfigError, match="avx2 is of x86, and this processor is arm64"):
        processor._processor.__wrapped__(("avx2",))


@needs("x86")
def test_torch_keeps_to_a_lesser_processor_too_and_computes_in_float32_there(tmp_path):
    """In a process of its own: torch asks once, before its first operation."""
    program = (
        "import tuneful, torch, pathlib\n"
        "from tuneful.model.precision import choose_dtype\n"
        "print(torch.backends.cpu.get_cpu_capability(), choose_dtype('auto', torch.device('cpu'), pathlib.Path('.')))"
    )
    others = (
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "MKL_ENABLE_INSTRUCTIONS",
    )  # set where this one pretends, too
    environment = {name: value for name, value in os.environ.items() if name not in others}
    environment |= {"TUNEFUL_PROCESSOR": "avx2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["AVX2", "torch.float32"]


def test_what_was_timed_on_the_processor_is_not_taken_for_a_lesser_one(monkeypatch):
    monkeypatch.delenv("TUNEFUL_PROCESSOR", raising=False)
    own = processor.processor_name()
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "avx512")
    assert processor.processor_name() == f"{own} as avx512"


def test_without_a_compiler_torch_computes_and_the_reason_is_the_word(monkeypatch):
    monkeypatch.setenv("TUNEFUL_PROCESSOR", "no-compiler")
    monkeypatch.setattr(native.library, "BUILT", "nowhere")
    native._attempt.cache_clear()
    assert native.kernels(CPU, torch.float32) is None
    assert "there is no C compiler: TUNEFUL_PROCESSOR=no-compiler" in native.describe()
    native._attempt.cache_clear()
