"""Which delete orders this node obeys: each at most once, none that is late, none decided from older metadata.

The number of the last one is kept in `DATA_DIR/orders`, so that a restart does not make an old one
new again. Any thread; `_lock` is held while the number is judged and kept.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from servers.protocol.errors import DcsError
from servers.protocol.orders import DeleteOrder, Knowledge, objection
from servers.storage.known_volume import KnownVolume

logger = logging.getLogger(__name__)


class OrderRefused(DcsError):
    """The order is not for this node, not signed, late, old or replayed; the message says which."""


class Obedience:
    def __init__(self, root: Path, node: str, volume: KnownVolume, secret: str) -> None:
        self._path = root / "orders"
        self._node = node
        self._volume = volume
        self._secret = secret
        self._lock = threading.Lock()
        try:
            self._last = int(self._path.read_text("ascii"))
        except FileNotFoundError:
            self._last = 0
        except ValueError:
            logger.warning("%s is not readable: orders are counted anew", self._path)
            self._last = 0

    def accept(self, order: DeleteOrder, signature: str) -> None:
        """The order may be carried out, now and never again. Raises OrderRefused, OSError."""
        if not order.is_signed(signature, self._secret):
            raise OrderRefused("the order is not signed with this cluster's secret")
        with self._lock:
            volume = self._volume
            known = Knowledge(self._node, volume.uuid, volume.seq, volume.now_ms(), self._last)
            problem = objection(order, known)
            if problem:
                raise OrderRefused(problem)
            beside = self._path.with_name("orders.new")
            beside.write_text(f"{order.number}\n", "ascii")
            os.replace(beside, self._path)
            self._last = order.number
