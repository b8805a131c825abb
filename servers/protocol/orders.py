"""Delete orders: how a naming server tells a storage node to delete, so that nothing else can pass for it.

An order is meant for one node of one volume, is signed with the cluster secret, and is obeyed at
most once: its number, which Redis counts up, must be above that of every order that the node has
obeyed. It is refused when it comes late, and when the metadata it was decided from ends before a
change that the node was told of. The time is Redis's, which the node learns with each heartbeat:
the clocks of the machines do not matter.

A refused order is no loss: whoever gave it finds the extents again and orders anew.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import msgpack

from servers.protocol.ids import ExtentId

ORDER_SECONDS = 30.0
"""How long an order may be under way."""
_PURPOSE = b"dcs delete order 1"


@dataclass(frozen=True, slots=True)
class DeleteOrder:
    volume: str
    """The volume's uuid, as the node's is."""
    node: str
    number: int
    seq: int
    """The volume's latest change when it was decided."""
    expires_ms: int
    """By Redis's clock."""
    extents: tuple[ExtentId, ...]

    def sign(self, secret: str) -> str:
        fields = [self.volume, self.node, self.number, self.seq, self.expires_ms, list(self.extents)]
        key = hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)
        return hmac.new(key, msgpack.packb(fields), hashlib.sha256).hexdigest()

    def is_signed(self, signature: str, secret: str) -> bool:
        return hmac.compare_digest(self.sign(secret).encode(), signature.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a node goes by when it gets an order."""

    node: str
    volume: str
    """"" before a naming server told it."""
    seq: int
    now_ms: int | None
    """Redis's time; None before the first heartbeat was answered."""
    last_number: int
    """Of the orders it has obeyed."""


def objection(order: DeleteOrder, known: Knowledge) -> str:
    """Why the node must not obey; "" when it may. The signature is checked apart."""
    if order.node != known.node:
        return f"this is not node {order.node}"
    if order.volume != known.volume:
        return f"these are extents of volume {known.volume or 'unknown yet'}, not of {order.volume}"
    if known.now_ms is None:
        return "no naming server has answered this node's heartbeats yet"
    if known.now_ms > order.expires_ms:
        return f"the order is {(known.now_ms - order.expires_ms) / 1000:.1f} s too late"
    if order.number <= known.last_number:
        return f"order {order.number} is not newer than order {known.last_number}, which was obeyed"
    if order.seq < known.seq:
        return f"it was decided from metadata that ends at change {order.seq}; this node knows of {known.seq}"
    return ""
