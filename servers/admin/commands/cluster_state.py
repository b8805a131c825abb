"""status, nodes, explain and fsck: what the cluster is made of and whether all of it is there."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from servers.admin.alarms import disk_states, disk_troubles, duration, replicas_in_words, scrub_age, scrubbed
from servers.admin.commands.options import Json, Name, Watch, naming_urls
from servers.admin.connection import Connection
from servers.admin.errors import one_line
from servers.admin.explain import explain as explain_file
from servers.admin.figures import errors_in_words, requests_in_words, share_in_words
from servers.admin.fsck import Finding, Findings
from servers.admin.fsck import fsck as check_volume
from servers.admin.output import human_bytes, print_facts, print_json, print_table
from servers.admin.runner import run
from servers.admin.watching import show_again
from servers.protocol.errors import TryAgain, Unavailable

FINDINGS_SHOWN = 20
DRAIN_LOOK_SECONDS = 1.0
NodeArgument = Annotated[
    int, typer.Argument(min=1, max=65535, metavar="NODE", help="Its number, as `dcs nodes` shows it.")
]
OK = "ok"
"""What a naming server says of itself when all is well."""


def status(ctx: typer.Context, json: Json = False, watch: Watch = False) -> None:
    """Show servers, space, files, and what waits to be done."""

    async def work(connection: Connection) -> dict[str, Any]:  # Any: values of JSON.
        addresses = connection.naming_addresses
        states = await asyncio.gather(*(connection.health(address) for address in addresses))
        if OK not in states:  # Said at once, where the status itself would wait for Redis first.
            said = "; ".join(f"{address}: {state}" for address, state in zip(addresses, states, strict=True))
            raise Unavailable(f"No naming server works: {said}")
        servers = [{"address": address, "state": state} for address, state in zip(addresses, states, strict=True)]
        return {"naming_servers": servers, **await connection.naming.json("GET", "/v1/status")}

    def show() -> None:
        found = run(naming_urls(ctx), work)
        if json:
            print_json(found)
            return
        print_facts(_facts(found))
        typer.echo()
        _print_nodes(found["nodes"])
        if found["mounts"]:
            typer.echo()
            _print_mounts(found["mounts"])

    show_again(show, watch=watch)


def _facts(s: dict[str, Any]) -> Iterator[tuple[str, object]]:
    yield "naming servers", ", ".join(f"{server['address']} {server['state']}" for server in s["naming_servers"])
    yield "redis", s["redis"] + (f", SAFE MODE, read-only: {s['safe_because']}" if s["safe_mode"] else "")
    yield "volume", s["volume"]
    yield "metadata", _metadata(s)
    yield "space", f"{human_bytes(s['free_bytes'])} free of {human_bytes(s['total_bytes'])}, as files can use it"
    yield "files", f"{s['files']} files, {s['directories']} directories, {human_bytes(s['bytes'])}"
    yield "extents", f"{s['extents']}, each on {s['replication_factor']} nodes; {human_bytes(s['chunk_size'])} chunks"
    wrong = [f"{s[key]} {key.replace('_', ' ')}" for key in ("under_replicated", "missing", "damaged") if s[key]]
    yield "replicas", ", ".join(wrong) or "all there, as far as is known"
    yield "repair", _repair(s["repair"])
    yield "deletions pending", f"{s['deletions_pending']} condemned, {s['garbage']} garbage"
    if s["deletions_held"]:
        yield "deletions held", f"{s['deletions_held']}; dcs gc --resume lets them go on"
    if s["garbage_brake"]:
        yield "garbage waits", f"{s['garbage_brake']}; see dcs gc --dry-run, then dcs gc --confirm"
    if s["trash"]:
        yield "trash", f"{s['trash']} files and directories, {human_bytes(s['trash_bytes'])}; dcs trash shows them"
    yield "scrub", scrub_age(s["nodes"], time.time())
    for trouble in disk_troubles(s["nodes"]):
        yield "disk", trouble
    yield "deleted but open", s["orphans"]
    yield "sessions", f"{s['sessions']} mounts and commands"
    up = f"since the naming server started {duration(s['up_seconds'])} ago"
    yield "slowest requests", f"{requests_in_words(s['requests'])}; {up}"
    yield "errors", f"{errors_in_words(s['errors'])} {up}"


def _metadata(s: dict[str, Any]) -> str:
    if not s["changes_stored"]:
        return f"{s['changes']} changes, only in Redis"
    unstored = max(0, s["changes"] - s["changes_stored"])
    age = duration(s["snapshot_age_seconds"])
    return f"{s['changes']} changes, {unstored or 'none'} of them only in Redis; snapshot {age} ago"


def nodes(ctx: typer.Context, json: Json = False, watch: Watch = False) -> None:
    """Show the storage nodes."""

    async def work(connection: Connection) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await connection.naming.json("GET", "/v1/nodes"))["nodes"]
        return found

    def show() -> None:
        found = run(naming_urls(ctx), work)
        if json:
            print_json(found)
        else:
            _print_nodes(found)

    show_again(show, watch=watch)


def _print_nodes(rows: Iterable[dict[str, Any]]) -> None:
    headings = ("node", "address", "state", "used", "free", "total", "disks", "replicas", "errors", "scrubbed", "store",
                "stored", "read", "rack", "uuid", "slowest")  # fmt: skip
    cells = (
        (
            row["id"], row["address"], _state(row), human_bytes(row["used_bytes"]), human_bytes(row["free_bytes"]),
            human_bytes(row["total_bytes"]), disk_states(row["disks"]), replicas_in_words(row["disks"]),
            errors_in_words({**row["errors"], "disk": sum(disk["errors"] for disk in row["disks"])}),
            scrubbed(row["disks"], time.time()), f"{row['store_ms']} ms",
            human_bytes(row["stored_bytes"]), human_bytes(row["read_bytes"]), row["rack"] or "-", row["uuid"],
            requests_in_words(row["requests"][:1]),
        )
        for row in rows
    )  # fmt: skip
    numbers = ("node", "used", "free", "total", "replicas", "scrubbed", "store", "stored", "read")
    print_table(headings, cells, numbers=numbers)


def _print_mounts(rows: Iterable[dict[str, Any]]) -> None:
    headings = ("mount", "host", "stored", "fetched", "cache hits", "unwritten", "open", "lost", "errors", "slowest")
    cells = (
        (
            row["what"].removeprefix("mount of "), row["host"], human_bytes(row["stored_bytes"]),
            human_bytes(row["fetched_bytes"]), share_in_words(row["cache_hits"], row["cache_misses"]),
            human_bytes(row["dirty_bytes"]), row["open_files"], human_bytes(row["lost_bytes"]),
            errors_in_words({**row["errors"], "EIO": row["failures"]}),
            requests_in_words(row["requests"][:2]),
        )
        for row in rows
    )  # fmt: skip
    print_table(headings, cells, numbers=headings[2:8])


def _state(row: dict[str, Any]) -> str:
    drain = "drained" if row["drained"] else "draining" if row["draining"] else ""
    return ", ".join(filter(None, (row["state"], drain)))


def _repair(r: dict[str, Any]) -> str:
    """What repair has before it, the most endangered first."""
    said = [f"{count} extents with {left} good copies left" for left, count in sorted(r["by_danger"].items())]
    if r["recounting"]:
        said.append(f"{r['recounting']} files asked for in another number of copies")
    if r["dropped"]:
        said.append(f"{r['dropped']} surplus copies to be deleted")
    said += [f"{left} extents left on draining node {node}" for node, left in r["draining"].items() if left]
    if r["paused"]:
        said.append("many nodes vanished together: only last copies are copied for now")
    if r["surveying"]:
        said.append("all files are being looked at, and there may be more")
    return "; ".join(said) or "nothing to do"


def drain(
    ctx: typer.Context,
    node: NodeArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it may be switched off.")] = False,
) -> None:
    """Empty a storage node: it takes nothing new, and what it has is copied to others; of a dead one, what others have.

    `dcs nodes` tells when it is drained and may be switched off; dcs forget if it will not come back.
    """

    async def work(connection: Connection) -> None:
        await connection.naming.json("POST", f"/v1/nodes/{node}/drain")
        while wait and not await _is_drained(connection, node):  # noqa: ASYNC110  The fact is on another machine.
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    run(naming_urls(ctx), work)
    typer.echo(f"node {node} is drained: it may be switched off" if wait else f"node {node} is being drained")


async def _is_drained(connection: Connection, node: int) -> bool:
    rows = (await connection.naming.json("GET", "/v1/nodes"))["nodes"]
    return any(row["id"] == node and row["drained"] for row in rows)


def undrain(
    ctx: typer.Context,
    node: NodeArgument,
) -> None:
    """Let a storage node that was drained take new copies again."""

    async def work(connection: Connection) -> None:
        await connection.naming.json("DELETE", f"/v1/nodes/{node}/drain")

    run(naming_urls(ctx), work)
    typer.echo(f"node {node} is one like any other again")


def forget(
    ctx: typer.Context,
    node: NodeArgument,
) -> None:
    """Forget a storage node that is drained, switched off and will not come back.

    It is refused should it come back; with an emptied disk it is a new node.
    """

    async def work(connection: Connection) -> None:
        await connection.naming.json("DELETE", f"/v1/nodes/{node}")

    run(naming_urls(ctx), work)
    typer.echo(f"node {node} is forgotten")


def explain(ctx: typer.Context, path: Name, json: Json = False) -> None:
    """Show a file's inode, chunks and extents, and where on whose disk each replica lies."""

    async def work(connection: Connection) -> dict[str, Any]:
        return await explain_file(connection, os.fsencode(path))

    found = run(naming_urls(ctx), work)
    if json:
        print_json(found)
        return
    print_facts(
        (key.replace("_", " "), value)
        for key, value in found.items()
        if key not in ("chunks", "mode") and value is not None
    )
    if not found["chunks"]:
        return
    typer.echo()
    headings = ("chunk", "offset", "length", "extent", "node", "state", "crc32c", "file")
    print_table(headings, _replica_rows(found["chunks"]), numbers=("chunk", "offset", "length", "node"))


def _replica_rows(chunks: Iterable[dict[str, Any]]) -> Iterator[tuple[object, ...]]:
    """One row a replica; what it shares with the row above is left out."""
    for chunk in chunks:
        for segment in chunk["segments"]:
            place: tuple[object, ...] = (chunk["index"], segment["offset"], segment["length"], segment["extent"])
            for replica in segment["replicas"]:
                where = f"{replica['address']}:{replica['path']}" if replica["path"] else replica["problem"]
                yield (*place, replica["node"], replica["state"], replica["crc32c"] or "-", where)
                place = ("", "", "", "")


def fsck(
    ctx: typer.Context,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait so long for pending deletions to be done.")
    ] = 0,
    data: Annotated[bool, typer.Option("--data", help="Have every replica read and verified, too.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Have repaired what is wrong, and with --wait look again until it is.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare what files show with what all nodes hold.

    Exit status: 0 clean, 1 something is missing, damaged or unknown to metadata, 2 a node could not be asked.
    """

    async def work(connection: Connection) -> Findings:
        return await check_volume(connection, wait_seconds=wait, verify=data, repair=repair)

    try:
        found = run(naming_urls(ctx), work)
    except TryAgain as error:
        found = Findings(unknown=[one_line(error)])
    if json:
        print_json(found.as_json())
    else:
        _print_findings(found)
    raise typer.Exit(found.exit_status)


def _print_findings(found: Findings) -> None:
    typer.echo(
        f"{found.extents} extents, {found.replicas} replicas on {found.nodes} nodes: {found.verdict}; "
        f"{found.deletions_pending} to be deleted, {found.in_flight} in flight, {found.surplus} surplus"
    )
    if found.reported:
        typer.echo(f"{found.reported} findings were told to the naming server, which has them repaired")
    _print_list("missing extent", found.missing_extents)
    _print_list("missing replica", map(_shown, found.missing_replicas))
    _print_list("damaged replica", map(_shown, found.damaged))
    _print_list("unknown to metadata", map(_shown, found.garbage))
    _print_list("not deleted", found.stopped)
    _print_list("could not be asked", found.unknown)


def _shown(finding: Finding) -> str:
    return f"{finding.extent} on node {finding.node}: {finding.what}"


def _print_list(what: str, lines: Iterable[str]) -> None:
    all_lines = list(lines)
    for line in all_lines[:FINDINGS_SHOWN]:
        typer.echo(f"{what}: {line}")
    if len(all_lines) > FINDINGS_SHOWN:
        typer.echo(f"{what}: {len(all_lines) - FINDINGS_SHOWN} more; --json shows all")
