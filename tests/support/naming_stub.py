"""As much of a naming server as a storage node's heartbeat needs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from servers.protocol.naming_api import HEALED_PATH

VOLUME = b"0123456789abcdef" * 2


class NamingStub:
    """Answers every registration with node 42 and keeps what was said."""

    def __init__(self, port: int = 0) -> None:
        self.reports: list[bytes] = []
        self.asked_healed = 0
        """How often a node asked which extents are healed."""
        self.healed: list[str] | None = None
        """What it is told; None: 503."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = self.rfile.read(int(self.headers["content-length"]))
                if self.path == HEALED_PATH:
                    stub.asked_healed += 1
                    answer = None if stub.healed is None else json.dumps({"healed": stub.healed}).encode()
                else:
                    stub.reports.append(said)
                    answer = b'{"node": 42, "volume": "' + VOLUME + b'", "seq": 7, "now_ms": 1000000}'
                self.send_response(503 if answer is None else 200)
                self.end_headers()
                self.wfile.write(answer or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # Its name in the base class.
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
