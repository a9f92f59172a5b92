"""A small stand-in for a model hub, on loopback: what huggingface_hub asks of one to download a file."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """Serves ``files`` ({"owner/repo": {"path": bytes}}) at revisions ``main`` and :data:`COMMIT`.

    ``requests`` lists method and path of each request. Repositories in ``gated`` answer 403.
    """

    def __init__(self, files: dict[str, dict[str, bytes]], gated: frozenset[str] = frozenset()) -> None:
        self.files = files
        self.gated = gated
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _find(self, path: str) -> tuple[int, str, bytes]:
        """Status, error code of the hub, content."""
        repo, found, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if not found or repo not in self.files:
            return 404, "RepoNotFound", b""
        if repo in self.gated:
            return 403, "GatedRepo", b""
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound", b""
        if file not in self.files[repo]:
            return 404, "EntryNotFound", b""
        return 200, "", self.files[repo][file]

    def _answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        self.requests.append(f"{handler.command} {handler.path}")
        status, code, content = self._find(handler.path.partition("?")[0])
        handler.send_response(status)
        if code:
            handler.send_header("X-Error-Code", code)
            handler.send_header("X-Error-Message", code)
        else:
            handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if body:
            handler.wfile.write(content)
