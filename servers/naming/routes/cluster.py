"""How the cluster is."""

from __future__ import annotations

import time
from dataclasses import asdict

from fastapi import APIRouter
from pydantic import BaseModel

from servers.naming.copies import survey_of, under_replicated
from servers.naming.mount_facts import MOUNTS_TOLD_MAX, Mount, mount_rows
from servers.naming.node_facts import RequestFigures, read_facts
from servers.naming.routes.nodes import Node, node_rows
from servers.naming.routes.refusals import refusals
from servers.naming.service import Service
from servers.protocol.placement import cluster_space
from servers.protocol.requests import figures


class RepairState(BaseModel):
    by_danger: dict[str, int] = {}
    """How many extents have so many good copies left, and fewer than they should."""
    paused: bool = False
    """So many nodes vanished together that only last copies are copied."""
    surveying: bool = False
    """All files are being looked at; what is counted is not yet all there is."""
    recounting: int = 0
    """Files that another number of copies is asked for, and that were not looked at since."""
    dropped: int = 0
    """Copies that are not wanted any more and wait to be deleted."""
    draining: dict[str, int | None] = {}
    """By node, how many extents were still on it at the last look; null before the first."""
    copies: int = 0
    copied_bytes: int = 0
    drops: int = 0
    failures: int = 0
    """Counted by the naming server that leads since it started."""


class Status(BaseModel):
    nodes: list[Node]
    mounts: list[Mount]
    """As they said of themselves last, some ten seconds ago."""
    volume: str
    redis: str
    safe_mode: bool
    safe_because: str
    files: int
    directories: int
    extents: int
    bytes: int
    sessions: int
    under_replicated: int
    missing: int
    damaged: int
    repair: RepairState
    deletions_pending: int
    garbage: int
    """Extents found on nodes that no file shows and no session will commit; deleted after their grace."""
    deletions_held: str
    """Why no node is told to delete anything; "" when they are."""
    garbage_brake: str
    """Why garbage is not collected until somebody confirms it; "" when it is."""
    changes: int
    """The volume's change counter."""
    changes_stored: int
    """Up to which the storage nodes have the metadata too."""
    snapshot_age_seconds: int
    orphans: int
    """Files without a name that somebody may still have open."""
    trash: int
    """Removed files and directories that can be restored."""
    trash_bytes: int
    """Among `bytes`; of one copy."""
    purging: int
    """Files whose chunks are being let go of, in steps."""
    chunk_size: int
    replication_factor: int
    total_bytes: int
    free_bytes: int
    """Of the cluster, as files can use it: raw bytes divided by the replication factor."""
    up_seconds: int
    """Of the naming server that answers this, as are the next two."""
    requests: list[RequestFigures]
    """Since then, the slowest first: requests over HTTP, and operations on the metadata."""
    errors: dict[str, int]
    """Since then, by kind: see deploy/metrics.md."""


def cluster_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["cluster"], responses=refusals())
    store = service.store

    @routes.get("/v1/status")
    async def status() -> Status:
        members, known = await service.members(), read_facts(await store.ask("facts"))
        (held,) = await store.ask("status")
        v = {name.decode(): value for name, value in held.items()}
        space, survey = cluster_space([member.view for member in members]), survey_of(held)
        return Status(
            nodes=node_rows(members, known, survey),
            mounts=mount_rows(await store.ask("sessions", count=MOUNTS_TOLD_MAX)),
            volume=v["uuid"].decode(), redis="ok",
            safe_mode=bool(v["safe"]), safe_because=v["safe"].decode(), deletions_held=v["held"].decode(),
            garbage_brake=v["brake"].decode(),
            under_replicated=under_replicated(held),
            missing=survey.get("missing", 0),
            repair=RepairState(
                recounting=v["recounting"], dropped=v["dropped"],
                **{name: survey[name] for name in RepairState.model_fields if name in survey},
            ),
            total_bytes=space.total_bytes // v["replicas"], free_bytes=space.free_bytes // v["replicas"],
            changes=v["seq"], changes_stored=v["stored_seq"], snapshot_age_seconds=v["snapshot_age_s"],
            chunk_size=v["chunk_size"], replication_factor=v["replicas"],
            up_seconds=int(time.monotonic() - service.started_at),
            requests=[RequestFigures(**asdict(one)) for one in figures(service.requests, store.operations)],
            errors=service.errors(),
            **{name: v[name] for name in (
                "files", "directories", "extents", "bytes", "sessions", "damaged",
                "deletions_pending", "garbage", "orphans", "trash", "trash_bytes", "purging",
            )},
        )  # fmt: skip

    return routes
