"""`make_secret.py FILE`: makes the cluster secret at the first start; one that is there stays as it is.

The file appears whole or not at all, on stable storage, readable for its owner alone.
"""

import contextlib
import os
import secrets
import sys

SECRET_BYTES = 32


def make_secret(file: str) -> None:
    directory = os.path.dirname(os.path.abspath(file))
    beside = f"{file}.{os.getpid()}.new"
    written = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
    try:
        os.write(written, secrets.token_hex(SECRET_BYTES).encode() + b"\n")
        os.fsync(written)
        with contextlib.suppress(FileExistsError):
            os.link(beside, file)  # Unlike a rename, this never replaces a secret that is in use.
    finally:
        os.close(written)
        os.unlink(beside)
    opened = os.open(directory, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


if __name__ == "__main__":
    if not os.path.exists(sys.argv[1]):
        make_secret(sys.argv[1])
