"""What a mount tells Prometheus, on a port of this machine, to whoever knows the cluster secret.

Knows the file system by its statistics only. Small and strict on purpose: one request a
connection, nothing but `GET /metrics`.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator, Mapping

import trio
from prometheus_client.core import Metric

from fusefs.mount_facts import errors_by_kind
from servers.protocol.metrics import CONTENT_TYPE, METRICS_PATH, counter, counters, exposition, gauge, request_families
from servers.protocol.requests import Requests

HOST = "127.0.0.1"
HEAD_BYTES_MAX = 16 * 1024
DEADLINE_SECONDS = 5.0
CONNECTIONS_MAX = 8

log = logging.getLogger(__name__)

Statistics = Callable[[], Mapping[str, int]]


async def serve_metrics(port: int, secret: str, requests: Requests, statistics: Statistics) -> None:
    """Until cancelled. Raises OSError when the port is taken."""
    listeners = await trio.open_tcp_listeners(port, host=HOST)
    room = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(DEADLINE_SECONDS):
            async with room, stream:
                try:
                    status, body = _reply(await _head(stream), secret, requests, statistics)
                    head = f"HTTP/1.1 {status}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n"
                    await stream.send_all(f"{head}connection: close\r\n\r\n".encode() + body)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    log.debug("whoever asked for metrics has left: %s", error)

    await trio.serve_listeners(answer, listeners)


async def _head(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
        piece = await stream.receive_some(HEAD_BYTES_MAX)
        if not piece:
            break
        head += piece
    return head


def _reply(head: bytes, secret: str, requests: Requests, statistics: Statistics) -> tuple[str, bytes]:
    line, *headers = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    if line.split(b" ")[:2] != [b"GET", METRICS_PATH.encode()]:
        return "404 Not Found", b"ask for GET /metrics\n"
    given = [
        value.strip() for name, _, value in (h.partition(b":") for h in headers) if name.lower() == b"authorization"
    ]
    if len(given) != 1 or not hmac.compare_digest(given[0], f"Bearer {secret}".encode()):
        return "401 Unauthorized", b"send Authorization: Bearer <cluster secret>\n"
    return "200 OK", exposition(mount_metrics(requests, statistics()))


def mount_metrics(requests: Requests, s: Mapping[str, int]) -> Iterator[Metric]:
    yield from request_families("dcs_mount_request", requests)
    yield counters(
        "dcs_mount_bytes", "Bytes stored on and fetched from storage nodes, each extent counted once.", "direction",
        {"stored": s["stored_bytes"], "fetched": s["fetched_bytes"]},
    )  # fmt: skip
    yield counters(
        "dcs_mount_cache_reads", "Reads by what the cache had.", "result", {n: s[n] for n in ("hits", "misses")}
    )
    yield gauge("dcs_mount_cache_bytes", "File content held in memory.", s["cached_bytes"])
    yield gauge(
        "dcs_mount_dirty_bytes", "Memory that is taken by what is written and not yet stored.", s["dirty_bytes"]
    )
    yield counters(
        "dcs_mount_write_backs", "Files that are open whose written data was stored unasked.", "result",
        {"stored": s["written_back"], "failed": s["write_backs_failed"]},
    )  # fmt: skip
    yield counter("dcs_mount_lost_bytes", "Written, and given up.", s["lost_bytes"])
    yield counter(
        "dcs_mount_sessions_lost", "Times that the mount was away for longer than its lease.", s["sessions_lost"]
    )
    yield gauge("dcs_mount_open_files", "Open handles.", s["handles"])
    yield gauge("dcs_mount_known_inodes", "Inodes whose attributes are remembered.", s["inodes"])
    yield counters(
        "dcs_mount_errors", "Trouble with storage nodes that was gone around, by kind.", "kind",
        errors_by_kind(s),
    )  # fmt: skip
    yield counter("dcs_mount_hedged_reads", "Reads for which a second replica was asked.", s["hedged"])
    yield gauge("dcs_mount_nodes_alive", "Storage nodes that live, as this mount knows.", s["alive"])
    yield gauge("dcs_mount_nodes_avoided", "Storage nodes that failed this mount, or keep it waiting.", s["ejected"])
    yield counter("dcs_mount_metadata_operations", "Operations sent to the naming server.", s["operations"])
    yield counter("dcs_mount_metadata_batches", "Requests that they travelled in.", s["batches"])
    yield counter("dcs_mount_metadata_retries", "Operations sent again.", s["retries"])
