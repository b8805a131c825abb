"""Which delete orders this node obeys: each at most once, none that is late, none decided from older metadata.

The number of the last one is kept in `DATA_DIR/orders`, on every disk, so that a restart does not
make an old one new again. Any thread; `_lock` is held while the number is judged and kept.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from servers.protocol.errors import DcsError
from servers.protocol.orders import DeleteOrder, Knowledge, objection
from servers.storage.known_volume import KnownVolume

logger = logging.getLogger(__name__)


class OrderRefused(DcsError):
    """The order is not for this node, not signed, late, old or replayed; the message says which."""


class Obedience:
    def __init__(self, roots: Sequence[Path], node: str, volume: KnownVolume, secret: str) -> None:
        self._paths = [root / "orders" for root in roots]
        self._node = node
        self._volume = volume
        self._secret = secret
        self._lock = threading.Lock()
        self._last = max(map(_read, self._paths))

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
            failed: list[OSError] = []
            for path in self._paths:
                try:
                    _write(path, order.number)
                except OSError as error:
                    failed.append(error)
            if len(failed) == len(self._paths):
                raise failed[0]
            self._last = order.number


def _read(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except FileNotFoundError:
        return 0
    except ValueError:
        logger.warning("%s is not readable: orders are counted anew", path)
        return 0


def _write(path: Path, number: int) -> None:
    beside = path.with_name("orders.new")
    beside.write_text(f"{number}\n", "ascii")
    os.replace(beside, path)
