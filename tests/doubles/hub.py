"""The Hugging Face Hub as far as an upload needs it, on loopback: what was asked of it, and the files of each commit."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What a stub of the Hub was given: repositories with their visibility, and files by name. `refuses` answers 403 to all."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.url = ""


@contextmanager
def hub_server(hub: Hub) -> Iterator[str]:
    """Serve `hub` while the block runs; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *values: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply({"siblings": [], "id": "me/mine", "sha": "0" * 40, "private": True})

        def do_PUT(self) -> None:
            hub.lfs[self.path.rpartition("/")[2]] = self._body()
            self._reply({})

        def do_POST(self) -> None:
            body = self._body()
            hub.tokens.add(self.headers.get("Authorization", ""))
            if hub.refuses:
                self._reply({"error": "no"}, 403)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.private[name] = bool(asked.get("private", asked.get("visibility") == "private"))
                self._reply({"url": f"{hub.url}/{name}", "name": name})
            elif "/preupload/" in self.path:
                files = [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["path"].endswith(".gguf") else "regular",
                        "shouldIgnore": False,
                    }
                    for one in json.loads(body)["files"]
                ]
                self._reply({"files": files})
            elif self.path.endswith("/info/lfs/objects/batch"):
                self._reply({"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    self._commit(line["key"], line["value"])
                self._reply({"commitUrl": f"{hub.url}/me/mine/commit/1", "commitOid": "1", "success": True})
            else:
                self._reply({})

        def _commit(self, key: str, value: dict[str, Any]) -> None:
            if key == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                hub.files[value["path"]] = hub.lfs[value["oid"]]

        def _place(self, one: dict[str, Any]) -> dict[str, Any]:
            upload = {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}
            return {"oid": one["oid"], "size": one["size"], "actions": {"upload": upload}}

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _reply(self, document: Any, status: int = 200) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.url
    finally:
        server.shutdown()
        server.server_close()
