"""Where the model runs and its compute dtype: the processor is asked first, timed once, and the timing is kept."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.doubles.elsewhere import without_onednn

from tuneful.errors import ConfigError
from tuneful.model import precision
from tuneful.model.precision import cast_parameters, choose_device, choose_dtype
from tuneful.model.processor import processor_name

CPU = torch.device("cpu")
NO_OBJECTS = ["[1]", "null", "3"]


@pytest.fixture
def processor(monkeypatch):
    """Set what the processor says of bfloat16, and how long its matrix products take; count the timings."""

    said = SimpleNamespace(native=True, seconds={torch.float32: 2.0, torch.bfloat16: 1.0}, num_timings=0)

    def timed(dtype, *_, **__):
        said.num_timings += 1
        return said.seconds[dtype]

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: said.native)
    monkeypatch.setattr(precision, "_seconds_of_product", timed)
    return said


def test_without_native_bfloat16_the_compute_dtype_is_float32_and_nothing_is_timed(processor, tmp_path):
    processor.native = False
    assert choose_dtype("auto", CPU, tmp_path) is torch.float32
    assert processor.num_timings == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, torch.bfloat16), (1.9, torch.float32), (30.0, torch.float32)])
def test_native_bfloat16_is_taken_where_it_is_faster_by_a_fifth(processor, tmp_path, seconds, expected):
    processor.seconds = {torch.float32: 2.0, torch.bfloat16: seconds}
    assert choose_dtype("auto", CPU, tmp_path) is expected


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bfloat16_trains_adapters_in_float16_and_whole_models_in_float32(native, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    gpu = torch.device("cuda")
    assert choose_dtype("auto", gpu, tmp_path) is (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("auto", gpu, tmp_path, adapts=True) is (torch.bfloat16 if native else torch.float16)
    assert choose_dtype("float16", gpu, tmp_path) is torch.float16


def test_a_busy_machine_does_not_decide(tmp_path, monkeypatch):
    """Products are timed on one thread, by the time that it works, and the threads are back afterwards."""
    seen, before = [], torch.get_num_threads()
    real = torch.nn.functional.linear

    def linear(*given):
        seen.append(torch.get_num_threads())
        return real(*given)

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("wall time was asked for"))
    torch.set_num_threads(2)
    try:
        choose_dtype("auto", CPU, tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_the_timing_is_kept_and_not_repeated(processor, tmp_path):
    cache = tmp_path / "not" / "there yet"
    assert choose_dtype("auto", CPU, cache) is torch.bfloat16
    timings = processor.num_timings
    assert timings == 2
    processor.seconds = {torch.float32: 1.0, torch.bfloat16: 9.0}
    assert choose_dtype("auto", CPU, cache) is torch.bfloat16
    assert processor.num_timings == timings


def test_the_timing_of_another_machine_is_not_used(processor, tmp_path, monkeypatch):
    """A home folder may be shared by machines whose processors Python calls by one name, x86_64."""
    choose_dtype("auto", CPU, tmp_path)
    processor.seconds = {torch.float32: 1.0, torch.bfloat16: 9.0}
    monkeypatch.setattr(precision, "processor_name", lambda: "another processor")
    assert choose_dtype("auto", CPU, tmp_path) is torch.float32
    assert processor.num_timings == 4


@pytest.mark.parametrize("damage", ["", "{", '{"key": "x"}', "\x00\xff", '{"speedup": 2}', *NO_OBJECTS])
def test_a_damaged_cache_is_measured_anew(processor, tmp_path, damage):
    choose_dtype("auto", CPU, tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(damage, encoding="latin-1")
    assert choose_dtype("auto", CPU, tmp_path) is torch.bfloat16
    assert processor.num_timings == 4
    assert json.loads(file.read_text())["speedup"] == 2


@pytest.mark.parametrize("speedup", ["fast", None, [2]])
def test_a_damaged_figure_is_measured_anew(processor, tmp_path, speedup):
    choose_dtype("auto", CPU, tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "speedup": speedup}))
    assert choose_dtype("auto", CPU, tmp_path) is torch.bfloat16
    assert processor.num_timings == 4


def test_a_cache_that_cannot_be_written_costs_a_timing_and_nothing_else(processor, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for _ in range(2):
        assert choose_dtype("auto", CPU, in_the_way) is torch.bfloat16
    assert processor.num_timings == 4


@pytest.mark.parametrize(("wanted", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_what_the_user_asks_for_is_taken_without_a_question(processor, tmp_path, wanted, expected):
    processor.native = False
    assert choose_dtype(wanted, CPU, tmp_path) is expected
    assert processor.num_timings == 0


def test_the_real_processor_is_timed_in_a_moment(tmp_path):
    assert choose_dtype("auto", CPU, tmp_path) in (torch.float32, torch.bfloat16)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"`model\.device`: 'cuda:1', but no CUDA device is visible"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A Mac with a GPU, on which a product takes so many seconds by device and precision; without oneDNN."""
    seconds = {("cpu", torch.float32): 1.0, ("mps", torch.float32): 1.0, ("mps", torch.bfloat16): 1.0}

    def timed(dtype, device=CPU, *_, **__):
        return seconds[device.type, dtype]

    without_onednn(monkeypatch)
    monkeypatch.setenv("TUNEFUL_CACHE", str(tmp_path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(precision, "_seconds_of_product", timed)
    return seconds


@pytest.mark.parametrize(
    ("cpu", "float32", "bfloat16", "device", "dtype"),
    [
        (1.0, 0.9, 0.8, "cpu", torch.float32),
        (1.0, 0.5, 0.45, "mps", torch.float32),
        (1.0, 0.9, 0.5, "mps", torch.bfloat16),
        (1.0, 0.4, math.inf, "mps", torch.float32),
    ],
    ids=["a slower GPU", "as fast in both", "faster in bfloat16", "no bfloat16"],
)
def test_the_gpu_of_a_mac_is_chosen_where_it_multiplies_faster(mac, tmp_path, cpu, float32, bfloat16, device, dtype):
    mac.update({("cpu", torch.float32): cpu, ("mps", torch.float32): float32, ("mps", torch.bfloat16): bfloat16})
    chosen = choose_device("auto")
    assert chosen == torch.device(device)
    assert choose_dtype("auto", chosen, tmp_path) is dtype
    mac.clear()  # timed once: whoever asks again is told the same
    assert choose_device("auto") == torch.device(device)
    assert choose_dtype("auto", chosen, tmp_path) is dtype


def test_the_gpu_of_a_mac_is_taken_where_it_is_asked_for(mac, monkeypatch):
    mac.clear()
    assert choose_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"`model\.device`: 'mps', but this build of torch has no MPS; use `auto`"):
        choose_device("mps")


def test_several_processes_of_a_mac_train_on_its_processor(mac, monkeypatch):
    mac["mps", torch.float32] = 0.1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device("auto") == CPU
    with pytest.raises(ConfigError, match="several processes train together"):
        choose_device("mps")


def test_a_precision_that_a_device_does_not_have_takes_for_ever():
    assert precision._seconds_of_product(torch.float32, torch.device("mps"), repeats=1) == math.inf
    assert precision._seconds_of_product(torch.float32, repeats=1) < 60


def test_parameters_are_cast_and_buffers_are_not():
    model = torch.nn.BatchNorm1d(3)
    cast_parameters(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.get_buffer("running_mean").dtype is torch.float32


def test_the_processor_of_a_mac_has_the_name_that_people_know(monkeypatch):
    def says(command, **_):
        assert command[0] == "sysctl"
        return SimpleNamespace(stdout="Apple M4 Pro\n")

    def no_file(*_, **__):
        raise FileNotFoundError

    monkeypatch.delenv("TUNEFUL_PROCESSOR", raising=False)
    monkeypatch.setattr(Path, "read_text", no_file)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", says)
    assert processor_name() == "Apple M4 Pro"
    monkeypatch.setattr(subprocess, "run", no_file)
    assert processor_name()
