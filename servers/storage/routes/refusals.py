"""The one place where the store's errors become HTTP."""

from __future__ import annotations

from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFull
from servers.serving.lane import LaneReply, json_reply
from servers.storage.extent_store import BadBody, OtherContent
from servers.storage.syncer import SyncFailed


class BadRequest(DcsError):
    """The request itself is wrong."""


class NotMeant(DcsError):
    """Another node has come to this one's address, or the other way round."""

    def __init__(self, uuid: str) -> None:
        super().__init__(f"another node is meant: this is {uuid}")


class RangeNotThere(DcsError):
    """The range begins beyond the extent's end."""

    def __init__(self, length: int) -> None:
        self.length = length
        super().__init__(f"the extent has {length} bytes")


REFUSALS = (DcsError, OSError)

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (BadRequest, 400),
    (BadBody, 400),
    (NotMeant, 421),
    (ExtentMissing, 404),
    (OtherContent, 409),
    (RangeNotThere, 416),
    (ExtentDamaged, 500),
    (SyncFailed, 500),
    (NodeFull, 507),
)


def refusal(error: DcsError | OSError) -> LaneReply:
    """Trouble with the disk is 503, which sends the client to another node; 500 says that a replica is damaged."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
    headers = (("content-range", f"bytes */{error.length}"),) if isinstance(error, RangeNotThere) else ()
    return json_reply(status, {"detail": str(error) or type(error).__name__}, headers)
