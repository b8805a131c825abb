"""`claim_directory.py PARENT COMMAND...`: runs COMMAND with DATA_DIR set to a directory in PARENT that is its alone.

All replicas of a compose service share one volume, but every storage node keeps its own directory and with it
its identity. So each replica claims one of PARENT/node1, PARENT/node2 and so on, by a lock that lasts as long as the
process: a new replica gets a new directory, and after a restart all of them are in use again.

A container prefers the directory that its own address had last. Addresses are given out anew at a restart; a
mount that has not heard of it yet then still finds behind each address the node that it expects there.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from pathlib import Path

NODES_MAX = 1000


def claim(parent: Path, address: str) -> Path:
    """A directory that no other living process has claimed; the lock stays with this process and what it executes."""
    numbers = range(1, NODES_MAX + 1)
    last_held = [n for n in numbers if _claim_file(parent, n).exists() and _read(_claim_file(parent, n)) == address]
    for number in [*last_held, *numbers]:
        held = os.open(_claim_file(parent, number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            continue
        os.ftruncate(held, 0)
        os.write(held, address.encode())
        os.set_inheritable(held, True)
        directory = parent / f"node{number}"
        directory.mkdir(exist_ok=True)
        return directory
    raise SystemExit(f"claim_directory: all {NODES_MAX} directories in {parent} are in use")


def _claim_file(parent: Path, number: int) -> Path:
    return parent / f"node{number}.claim"


def _read(file: Path) -> str:
    return file.read_text("utf-8", "replace")


def own_address() -> str:
    """This container's address by its own name; "" where there is none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


if __name__ == "__main__":
    os.environ["DATA_DIR"] = os.fspath(claim(Path(sys.argv[1]), own_address()))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the server takes this process's place, and its signals
