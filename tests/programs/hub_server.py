"""A small model hub on this machine: it answers what the real client of Hugging Face asks when it downloads a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"
Files = Mapping[str, bytes]


class Hub:
    """``address`` is where it answers; ``asked`` are the paths that were asked for, in order."""

    def __init__(self, models: Mapping[str, Files]) -> None:
        self.models, self.asked, self.address = models, list[str](), ""


@contextmanager
def serving(models: Mapping[str, Files]) -> Iterator[Hub]:
    """A hub with ``models``: their files by owner/name."""
    hub = Hub(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            name = "/".join(parts[2:4] if api else parts[:2])
            files = hub.models.get(name)
            if files is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if api and "tree" in parts:
                rows = [
                    {"type": "file", "path": path, "oid": _id(data), "size": len(data)} for path, data in files.items()
                ]
                return self._send(200, json.dumps(rows).encode(), {})
            if api:
                siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
                about = {
                    "id": name,
                    "sha": REVISION,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                }
                return self._send(200, json.dumps(about).encode(), {})
            path = "/".join(parts[4:])
            if parts[2:3] != ["resolve"] or path not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self._send(200, files[path], {"ETag": f'"{_id(files[path])}"', "X-Repo-Commit": REVISION})

        def _send(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


def _id(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
