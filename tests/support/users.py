"""Acting as another user for a while, in this very process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
ALICE = User(61_001, 62_001)
BOB = User(61_002, 62_002)
CAROL = User(61_003, 62_003, (62_001,))
"""A member of Alice's group besides her own."""


@contextmanager
def acting_as(user: User, *, umask: int | None = None) -> Iterator[None]:
    """System calls within are that user's: its ids, its groups, and none of root's rights. Needs root.

    The effective ids change, and with them who owns what is made; the way back stays open.
    """
    before = os.getgroups()
    with _umask(umask):
        _become(user.uid, user.gid, user.groups)
        try:
            yield
        finally:
            os.seteuid(0)
            _become(0, 0, before)


def _become(uid: int, gid: int, groups: Sequence[int]) -> None:
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)


@contextmanager
def _umask(mask: int | None) -> Iterator[None]:
    if mask is None:
        yield
        return
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
