"""`python -m servers.storage.tools.gc`: what lies in this node's directory that no file needs.

The naming server collects garbage by itself; this is for looking, and for not waiting for its next
round. It prints each extent that nobody needs, and why. With --delete it asks the naming server to
have this node delete those whose grace is over: the same checks, the same brake, the same signed order, and
the node keeps them for a while (`dcs gc --undo`). It deletes no file itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from servers.client.http import HttpxTransport
from servers.client.naming import NamingClient, ServerRefused
from servers.protocol.errors import DcsError
from servers.protocol.ids import extent_text, parse_extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.serving.access import SecretError, load_secret


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m servers.storage.tools.gc", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data-dir", default=os.environ.get("DATA_DIR", "/data"), help="one a disk, comma separated (DATA_DIR; /data)"
    )
    parser.add_argument(
        "--naming-url", default=os.environ.get("NAMING_URL", "http://localhost:8000"),
        help="naming servers, comma separated (NAMING_URL; http://localhost:8000)",
    )  # fmt: skip
    parser.add_argument("--delete", action="store_true", help="have those deleted whose grace is over")
    arguments = parser.parse_args()
    try:
        file = os.environ.get("DCS_SECRET_FILE")
        secret = load_secret(Path(file) if file else None, os.environ.get("DCS_SECRET"))
        roots = [Path(part.strip()) for part in arguments.data_dir.split(",") if part.strip()]
        return asyncio.run(_collect(roots, arguments.naming_url, secret.text, delete=arguments.delete))
    except (DcsError, SecretError, OSError, ValueError) as error:
        print(f"gc: {error}", file=sys.stderr)
        return 1


async def _collect(roots: Sequence[Path], naming_url: str, secret: str, *, delete: bool) -> int:
    try:
        node = (roots[0] / "node.uuid").read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError, IndexError) as error:
        raise ValueError(
            f"{', '.join(map(str, roots))} is not the directory of a storage node: see --data-dir"
        ) from error
    transport = HttpxTransport(secret)
    try:
        naming = NamingClient(transport, naming_url)
        looked_at = doomed = deleted = 0
        refused = ""
        for names in chain.from_iterable(map(_batches, roots)):
            looked_at += len(names)
            rows = (await naming.json("POST", "/v1/extents/why", {"extents": names}))["extents"]
            garbage = [row for row in rows if row["verdict"] in ("garbage", "condemned")]
            doomed += len(garbage)
            for row in garbage:
                print(f"{row['extent']}: {row['why']}; due in {row['due_seconds']:.0f} s")
            due = [row["extent"] for row in garbage if row["verdict"] == "garbage"]
            if delete and due and not refused:
                try:
                    done = await naming.json("POST", "/v1/deletions/collect", {"node": node, "extents": due})
                    deleted += len(done["deleted"])
                except ServerRefused as error:
                    refused = str(error)
    finally:
        await transport.close()
    print(f"{looked_at} extents, {doomed} of them needed by nobody, {deleted} deleted")
    if refused:
        print(f"gc: {refused}", file=sys.stderr)
    return 1 if refused else 0


def _batches(data_dir: Path) -> Iterator[list[str]]:
    names: list[str] = []
    for bucket in sorted((data_dir / "extents").iterdir()):
        for name in sorted(os.listdir(bucket)):
            try:
                names.append(extent_text(parse_extent_text(name)))
            except ValueError:
                print(f"{bucket / name}: not an extent", file=sys.stderr)
            if len(names) == EXTENTS_PER_CALL_MAX:
                yield names
                names = []
    if names:
        yield names


if __name__ == "__main__":
    sys.exit(main())
