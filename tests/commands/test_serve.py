"""`tuneful serve`: it prints where it is, answers there, ends with Ctrl-C, and refuses what it cannot do before it listens."""

from __future__ import annotations

import re
import signal
import socket
import sys
import time

import httpx
import pytest
from tests.doubles import processes
from tests.machine import needs

import tuneful
from tuneful.errors import ConfigError, InputError, ModelError


@needs("posix")
def test_it_prints_its_addresses_answers_there_and_ends_cleanly(tiny_llama):
    process = processes.tuneful("serve", "--model", str(tiny_llama), "--port", "0", "model.dtype=float32")
    address = _address(process)
    answered = httpx.post(
        address + "/v1/chat/completions",
        json={"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3},
        timeout=60,
    )
    assert answered.json()["usage"]["completion_tokens"] == 3
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "models: llama" in err
    assert "Traceback" not in err


def _address(process):
    """Where it says that it is, once it answers there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = re.search(r"Ollama's protocol: (http://\S+)", process.error_so_far)
        if found:
            try:
                httpx.get(found[1])
                return found[1]
            except httpx.TransportError:
                pass
        time.sleep(0.05)
    raise AssertionError(process.error_so_far)


def test_a_server_for_other_machines_needs_a_token(tiny_llama):
    with pytest.raises(ConfigError, match="--token"):
        tuneful.serve(model=tiny_llama, host="0.0.0.0")


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="give another --port"):
        tuneful.serve(model="/nowhere", port=taken.getsockname()[1])


def test_a_model_that_is_not_there_is_said():
    with pytest.raises(ModelError, match="nowhere"):
        tuneful.serve(model="./nowhere", port=0)


def test_a_missing_library_is_said_kindly(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(InputError, match=r"pip install 'tuneful\[serve\]'"):
        tuneful.serve()
