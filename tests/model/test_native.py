"""The compiled kernels: made once, for this machine, and done without where they cannot be made."""

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.doubles.engine import random_records, train_config
from tests.doubles.processes import Process
from tests.machine import needs

from tuneful.batch.trie import build_trie, cut_blocks
from tuneful.commands.doctor import doctor
from tuneful.model import native
from tuneful.model.attention_native import NativeAttention, lay_out_blocks
from tuneful.model.native import library as libraries
from tuneful.model.native.compiler import SOURCES
from tuneful.model.processor import processor
from tuneful.train.loss import WeightedCrossEntropy
from tuneful.train.update import NativeUpdate, Trained

CPU = torch.device("cpu")


def library():
    found = native.kernels(CPU, torch.float32)
    assert found is not None, native.describe()
    return found


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """As on a machine that has compiled nothing yet, whatever processor it is told to be: that is asked of other tests."""
    monkeypatch.delenv("TUNEFUL_PROCESSOR", raising=False)
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path))
    monkeypatch.setenv("TUNEFUL_NATIVE", "1")
    native._attempt.cache_clear()
    yield tmp_path
    native._attempt.cache_clear()


@pytest.fixture
def quick(monkeypatch, tmp_path_factory):
    """The machine's compiler, but half a second of it: what is made and kept is the same without optimizing."""
    monkeypatch.setenv(
        "CC", program(tmp_path_factory.mktemp("quick") / "cc", f'exec {libraries.compiler().path} "$@" -O0')
    )


def compiled_in(folder: Path) -> Path:
    by = libraries.compiler()
    return libraries.compiled(folder, by, libraries._flags(by, processor(), threads=True))


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# --------------------------------------------------------------------------------------------------------- compilation


@pytest.mark.usefixtures("compiled")
def test_they_are_compiled_once_and_nothing_else_is_left_in_the_cache(afresh):
    assert native.kernels(CPU, torch.bfloat16) is not None
    (made,) = (afresh / "native").iterdir()
    before = made.stat().st_mtime_ns
    native._attempt.cache_clear()
    library()
    assert [path.stat().st_mtime_ns for path in (afresh / "native").iterdir()] == [before]


@pytest.mark.usefixtures("compiled", "quick")
def test_another_source_is_another_library(afresh, monkeypatch):
    library()
    source = Path(native.__file__).with_name("kernels.c").read_text()
    for name in SOURCES:
        (afresh / name).write_text(Path(native.__file__).with_name(name).read_text())
    (afresh / "kernels.c").write_text(source + "\n/* changed */\n")
    monkeypatch.setattr(libraries, "HERE", afresh)
    native._attempt.cache_clear()
    library()
    assert len(list((afresh / "native").iterdir())) == 2


def test_without_a_compiler_torch_computes_and_the_doctor_says_what_is_missing(afresh, monkeypatch):
    monkeypatch.setenv("PATH", str(afresh))
    monkeypatch.delenv("CC", raising=False)
    assert native.kernels(CPU, torch.float32) is None
    assert "no C compiler" in native.describe()
    assert "no C compiler" in doctor()["kernels"]


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(afresh, monkeypatch):
    monkeypatch.setenv("CC", program(afresh / "broken", "echo 'kernels.c:1: error: unknown processor' >&2; exit 1"))
    assert native.kernels(CPU, torch.float32) is None
    assert "unknown processor" in native.describe()
    assert not [path for path in (afresh / "native").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("compiled", "quick")
@pytest.mark.parametrize("damage", [lambda _: b"", lambda made: made[:99], lambda made: made[:-9] + b"\1" + made[-8:]])
def test_a_library_that_is_damaged_in_the_cache_is_compiled_again(afresh, damage):
    made = compiled_in(afresh / "native")  # and not loaded: a path that was loaded once is not read again
    whole = made.read_bytes()
    made.write_bytes(damage(whole))
    library()
    assert made.read_bytes() == whole
    assert [made] == list((afresh / "native").iterdir())


@pytest.mark.usefixtures("compiled", "quick")
def test_a_library_that_somebody_put_there_is_not_loaded(afresh):
    made = compiled_in(afresh / "native")
    whole = made.read_bytes()
    foreign = made.with_name(made.name.replace(made.stem.rpartition("-")[2], "0" * 64))
    foreign.write_bytes(b"\x7fELF of somebody else's")
    assert compiled_in(afresh / "native") == made
    assert made.read_bytes() == whole


@needs("posix")
@pytest.mark.usefixtures("compiled", "quick")
def test_what_lies_where_others_may_write_is_compiled_again_and_the_folder_closed(afresh):
    made = compiled_in(afresh / "native")
    whole = made.read_bytes()
    planted = made.with_name(f"{made.stem.rpartition('-')[0]}-{hashlib.sha256(b'rubbish').hexdigest()}.so")
    planted.write_bytes(b"rubbish")
    (afresh / "native").chmod(0o777)
    assert compiled_in(afresh / "native") == made
    assert [path.read_bytes() for path in (afresh / "native").iterdir()] == [whole]
    assert stat.S_IMODE((afresh / "native").stat().st_mode) == 0o700


@needs("posix")
def test_the_cache_of_another_user_is_not_used(afresh, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert native.kernels(CPU, torch.float32) is None
    assert "belongs to another user" in native.describe()


@pytest.mark.usefixtures("compiled", "quick")
def test_several_that_compile_at_once_all_get_a_library(afresh):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(compiled_in, [afresh / "native"] * 4))
    assert len(set(made)) == 1
    assert [*(afresh / "native").iterdir()] == [made[0]]
    library()


def test_a_library_that_cannot_be_loaded_is_done_without(afresh, monkeypatch):
    writes_rubbish = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo rubbish > "$2"; shift; done'
    monkeypatch.setenv("CC", program(afresh / "odd", writes_rubbish))
    assert native.kernels(CPU, torch.float32) is None
    assert "cannot be kept or loaded" in native.describe()


def test_a_cache_that_cannot_be_written_is_done_without(afresh, monkeypatch):
    (afresh / "file").write_text("")
    monkeypatch.setenv("TUNEFUL_CACHE", str(afresh / "file"))
    assert native.kernels(CPU, torch.float32) is None


def test_they_serve_neither_other_devices_nor_other_numbers_and_can_be_left_out(monkeypatch):
    assert native.kernels(torch.device("cuda"), torch.float32) is None
    assert native.kernels(CPU, torch.float16) is None
    monkeypatch.setenv("TUNEFUL_NATIVE", "0")
    assert native.kernels(CPU, torch.float32) is None
    assert "TUNEFUL_NATIVE=0" in native.describe()


def compile_them():
    library()


@pytest.mark.usefixtures("compiled", "quick")
def test_processes_that_compile_at_the_same_time_do_not_disturb_each_other(afresh):
    running = [Process(compile_them) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert len(list((afresh / "native").iterdir())) == 1


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture
def threads():
    """Sets torch's number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def attention_and_gradients(batch, dtype):
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, batch.num_nodes, heads, 16).to(dtype).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)
    ]
    output = NativeAttention.apply(*inputs, lay_out_blocks(cut_blocks(batch, 48), 2, library()), 0.25)
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


def loss_and_gradient(dtype=torch.float32):
    torch.manual_seed(0)
    logits = torch.randn(37, 3000, dtype=dtype, requires_grad=True)
    total, nll = WeightedCrossEntropy.apply(logits, torch.arange(37), torch.rand(37))
    return [nll, *torch.autograd.grad(total, logits)]


def trained_tensors():
    """Two tensors, one of them longer than what a thread takes at once, and one that nothing is known of."""
    torch.manual_seed(0)
    tensors = []
    for size in (200_003, 0, 17):
        parameter = torch.nn.Parameter(torch.randn(size).bfloat16())
        parameter.grad = torch.randn(size).bfloat16()
        master = parameter.detach().float()
        tensors.append(Trained("a", parameter, master, torch.zeros(size), torch.zeros(size), 0.1))
    return tensors


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_depends_on_the_number_of_threads(threads, dtype):
    batch = build_trie(random_records(20))
    found = []
    for number in (1, 2, 5):
        threads(number)
        tensors = trained_tensors()
        update = NativeUpdate(tensors, train_config(), True, library())
        norm = torch.tensor(update.squared_norm(), dtype=torch.float64)
        update.step(1, 1e-2, 2.0)
        weights = [part for tensor in tensors for part in (tensor.parameter.detach(), tensor.master, tensor.exp_avg_sq)]
        found.append([*attention_and_gradients(batch, dtype), *loss_and_gradient(), norm, *weights])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("compiled")
def test_the_norm_is_that_of_all_gradients_and_an_empty_parameter_counts_nothing():
    tensors = trained_tensors()
    wanted = sum(tensor.parameter.grad.double().square().sum().item() for tensor in tensors)
    update = NativeUpdate(tensors, train_config(), True, library())
    assert update.squared_norm() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.usefixtures("compiled")
def test_every_weight_is_rounded_to_bfloat16_as_torch_rounds_it():
    """All upper halves of a float32, each with the lower halves around a tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    master = torch.from_numpy(
        (upper[:, None] | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel().view(np.float32)
    )
    parameter = torch.nn.Parameter(torch.zeros(len(master), dtype=torch.bfloat16))
    parameter.grad = torch.zeros_like(parameter)
    own = Trained("a", parameter, master.clone(), torch.zeros_like(master), torch.zeros_like(master), 0.0)
    NativeUpdate([own], train_config(), True, library()).step(1, 0.0, 1.0)
    torch.testing.assert_close(parameter.detach(), own.master.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 64, 1000])
def test_logits_far_apart_neither_overflow_nor_lose_the_largest(size, dtype):
    torch.manual_seed(0)
    logits = (300 * torch.randn(6, size)).to(dtype).requires_grad_()
    ids, weights = torch.arange(6) % size, torch.linspace(0.5, 2, 6)
    total, nll = WeightedCrossEntropy.apply(logits, ids, weights)
    exact = logits.detach().double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact, ids, reduction="none")
    torch.testing.assert_close(nll.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    (found,) = torch.autograd.grad(total, logits)
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), exact)
    torch.testing.assert_close(found.double(), gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("compiled")
def test_logits_that_are_not_finite_give_a_loss_that_is_not():
    for planted in (torch.nan, torch.inf):
        logits = torch.zeros(3, 50, requires_grad=True)
        with torch.no_grad():
            logits[1, 7] = planted
        total, nll = WeightedCrossEntropy.apply(logits, torch.tensor([1, 2, 3]), torch.ones(3))
        assert not total.isfinite()
        assert nll.isfinite().tolist() == [True, False, True]
        assert not torch.autograd.grad(total, logits)[0][1].isfinite().all()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_bad_number_in_attention_reaches_those_who_see_it_and_no_other_record(which):
    batch = build_trie(random_records(4), share=False)
    torch.manual_seed(0)
    inputs = [torch.randn(1, batch.num_nodes, heads, 16).transpose(1, 2) for heads in (4, 2, 2)]
    node = batch.num_nodes // 2
    inputs[which][0, 0, node, 3] = torch.nan
    output = NativeAttention.apply(*inputs, lay_out_blocks(cut_blocks(batch, 48), 2, library()), 0.25)
    touched = (~output[0].isfinite()).flatten(1).any(1).numpy()
    nodes, record = np.arange(batch.num_nodes), np.cumsum(batch.positions == 0)
    sees = (nodes >= node) & (nodes < batch.subtree_end[node]) if which else nodes == node
    assert touched[sees].all()
    assert not touched[record != record[node]].any()
