"""The small interface that the clients speak HTTP through, and its httpx form.

The CLI and the servers use `HttpxTransport`; the mount plugs in its own lean one, because a
small httpx request costs six times the CPU of a plain socket's.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from servers.protocol.checksum import Buffer
from servers.protocol.errors import AccessDenied, DcsError, TryAgain

CONNECT_SECONDS = 1.0
FIRST_BYTE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Buffer
    is_repeated: bool = False
    """The request was sent before, and got no answer that counts: it may have been served twice."""


class Transport(Protocol):
    async def request(
        self,
        address: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Buffer] = (),
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
        deadline_seconds: float = 30.0,
    ) -> Answer:
        """One request to host:port and its whole answer, whatever its status but 401.

        Connecting takes at most CONNECT_SECONDS; the first byte of the answer comes within
        `first_byte_seconds` of the request's last, all within `deadline_seconds`. Raises TryAgain
        when it does not, or the connection fails; AccessDenied for a 401.
        """
        ...

    async def close(self) -> None: ...


class AtOnce(Protocol):
    """The same small request to several servers, for the least CPU; what a transport may offer besides."""

    async def __call__(
        self, addresses: Sequence[str], method: str, target: str, *, headers: Sequence[Mapping[str, str]],
        body: Sequence[Buffer], seconds: float,
    ) -> list[Answer | DcsError | None]:  # fmt: skip
        """`headers`: for each of the addresses. Per address: its answer; an error where others answered and it did not
        within `seconds`; None where that says nothing, as where no connection was at hand."""
        ...


def no_tls() -> ssl.SSLContext:
    """For httpx, which reads all certificate authorities else. Our servers speak plain HTTP; this trusts nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class HttpxTransport:
    """For control traffic: correct, complete, and slower.

    httpx is imported when one is made: the mount and the commands, which bring transports of their
    own, start 0.1 s sooner without it.
    """

    def __init__(self, secret: str) -> None:
        import httpx

        limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {secret}"}, limits=limits, trust_env=False, verify=no_tls(), timeout=None
        )

    async def request(
        self,
        address: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Buffer] = (),
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
        deadline_seconds: float = 30.0,
    ) -> Answer:
        import anyio
        import httpx

        length = sum(len(piece) for piece in body)
        sent = {**(headers or {}), "content-length": str(length)}
        timeout = httpx.Timeout(
            deadline_seconds, connect=CONNECT_SECONDS, read=min(first_byte_seconds, deadline_seconds)
        )
        try:
            with anyio.fail_after(deadline_seconds):  # httpx's own limits are for each read and write.
                answer = await self._client.request(
                    method,
                    f"http://{address}{target}",
                    headers=sent,
                    content=_pieces(body) if length else None,
                    timeout=timeout,
                )
        except (httpx.TransportError, httpx.InvalidURL, TimeoutError) as error:
            raise TryAgain(f"{address}: {type(error).__name__} {error}".rstrip()) from error
        if answer.status_code == 401:
            raise AccessDenied(f"{address} does not accept this cluster's secret")
        return Answer(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)

    async def close(self) -> None:
        await self._client.aclose()


async def _pieces(body: Sequence[Buffer]) -> AsyncIterator[bytes]:
    for piece in body:
        yield bytes(piece)
