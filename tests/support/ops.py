"""A mount's side of `POST /v1/ops`, blocking and without any retry: what was answered is what is seen."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx
import msgpack

from servers.client.http import no_tls
from servers.protocol.ids import SessionNumber
from servers.protocol.naming_api import (
    DEADLINE_HEADER,
    OPS_PATH,
    Operation,
    operation,
    pack_batch,
    unpack_replies,
)


class Ops:
    def __init__(self, url: str, secret: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {secret}"}, trust_env=False, verify=no_tls(), timeout=60
        )
        self.session = SessionNumber(0)
        self.n = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def open_session(self) -> dict[bytes, Any]:
        """The facts of the volume."""
        number, facts = self.ask("session_open", host="here", what="a test")
        self.session, self.n = SessionNumber(number), 0
        return dict(facts)

    def post(self, body: bytes, deadline_ms: int | str = 30_000, **headers: str) -> httpx.Response:
        return self._http.post(OPS_PATH, content=body, headers={DEADLINE_HEADER: str(deadline_ms), **headers})

    def batch(self, operations: list[Operation], deadline_ms: int = 30_000) -> list[list[Any] | None]:
        """The errno and results of each; None where Redis could not be asked in time."""
        return self.replies(pack_batch(self.session, operations), deadline_ms)

    def replies(self, body: bytes, deadline_ms: int = 30_000) -> list[list[Any] | None]:
        """As `batch`, to one that is packed already."""
        answer = self.post(body, deadline_ms)
        assert answer.status_code == 200, answer.text
        return [_unpack(reply) for reply in unpack_replies(answer.content)]

    def make(self, verb: str, **arguments: Any) -> Operation:
        """A mutation with the next number."""
        self.n += 1
        return operation(verb, self.n, **arguments)

    def read(self, verb: str, **arguments: Any) -> Operation:
        return operation(verb, 0, **arguments)

    def mkdir(self, name: bytes, parent: int = 1) -> Operation:
        return self.make("mkdir", parent=parent, name=name, mode=0o755, uid=0, gid=0)

    def ask(self, verb: str, **arguments: Any) -> list[Any]:
        """A read's results."""
        (reply,) = self.batch([operation(verb, 0, **arguments)])
        assert reply is not None
        assert reply[0] == 0, f"{verb}: {reply}"
        return reply[1:]

    def names(self) -> list[bytes]:
        _, _, *flat = self.ask("readdir", ino=1, after=0, count=1024)
        return flat[::4]


def _unpack(reply: bytes | None) -> list[Any] | None:
    return None if reply is None else msgpack.unpackb(reply, raw=True, strict_map_key=False)
