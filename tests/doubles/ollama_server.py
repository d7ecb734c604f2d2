"""Ollama's protocol for one exported folder: its Modelfile is obeyed, its TEMPLATE rendered, llama.cpp's server asked.

What Ollama does with a chat, as far as a Modelfile tells: SYSTEM opens a chat that brings no system text, the TEMPLATE makes the
prompt, PARAMETERs are the options that a request does not set, and the file after FROM answers. `rendered` are the prompts.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tuneful.export.go_template import render_go
from tuneful.export.ollama import block_of, ollama_data
from tuneful.infer.llama_cpp import LlamaCpp

_PARAMETER = re.compile(r'^PARAMETER (\w+) (?:"""(.*?)"""|"(.*?)"|(\S+))$', re.S | re.M)
_NAMES = {"num_predict": "n_predict", "temperature": "temperature", "repeat_penalty": "repeat_penalty", "seed": "seed"}
_DATE = "2026-01-01T00:00:00Z"


@dataclass
class OllamaServer:
    """A server on loopback: its `address`, the `model` that it has, and the prompts that it `rendered`."""

    model: str
    modelfile: str
    llama: LlamaCpp
    address: str = ""
    rendered: list[str] = field(default_factory=list)

    def reply(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to POST /api/chat."""
        template, system = block_of(self.modelfile, "TEMPLATE"), block_of(self.modelfile, "SYSTEM")
        assert template is not None, "Ollama would guess a template"
        prompt = render_go(template, ollama_data(asked["messages"], system or ""))
        self.rendered.append(prompt)
        found = self.llama.client.post("/completion", json={"prompt": prompt, **self.options(asked)}).json()
        return {
            "model": self.model,
            "created_at": _DATE,
            "message": {"role": "assistant", "content": found["content"]},
            "done": True,
            "done_reason": "length" if found["stop_type"] == "limit" else "stop",
            "prompt_eval_count": found["tokens_evaluated"],
            "eval_count": found["tokens_predicted"],
        }

    def options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What llama.cpp's server is told beside the prompt: the request's options before those of the Modelfile."""
        given: dict[str, Any] = {"stop": []}
        for name, block, line, word in _PARAMETER.findall(self.modelfile):
            value = block or line or word
            given |= {name: [*given["stop"], value]} if name == "stop" else {name: float(value)}
        given |= asked.get("options") or {}
        return {"stop": given["stop"], **{_NAMES[name]: value for name, value in given.items() if name in _NAMES}}


@contextmanager
def serving_ollama(folder: Path, model: str = "exported") -> Iterator[OllamaServer]:
    """Serve the exported `folder`, a GGUF file and its Modelfile, in a thread of its own."""
    modelfile = (folder / "Modelfile").read_text(encoding="utf-8")
    file = modelfile.partition("\n")[0].removeprefix("FROM ./")
    with LlamaCpp.load(folder / file, num_ctx=512) as llama:
        served = OllamaServer(model, modelfile, llama)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(served: OllamaServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(
                {"models": [{"model": served.model, "name": served.model}]} if self.path == "/api/tags" else None
            )

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/api/chat" or asked["model"] != served.model:
                self._send(None)
                return
            reply = served.reply(asked)
            if not asked.get("stream", True):
                self._send(reply)
                return
            piece = {name: reply[name] for name in ("model", "created_at", "message")} | {"done": False}
            end = reply | {"message": {"role": "assistant", "content": ""}}
            self._send(piece, end, kind="application/x-ndjson")

        def _send(self, *documents: Any, kind: str = "application/json") -> None:
            found = documents != (None,)
            lines = documents if found else ({"error": f"model '{served.model}' is the only one here"},)
            body = "".join(json.dumps(line) + "\n" for line in lines).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Nothing is said on the tests' terminal."""

    return Handler
