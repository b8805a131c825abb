"""Settings of the naming server, from the environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from servers.naming.membership import DEAD_AFTER_SECONDS, RETURNS_TOLERATED, SUSPECT_AFTER_SECONDS
from servers.protocol.limits import CHUNK_BYTES_DEFAULT, MIB


class NamingSettings(BaseSettings):
    """Chunk size and replication factor count when the volume is made; after that, its metadata has them."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address to bind."""
    port: int = Field(8000, ge=0, le=65535)
    """0 takes any free one."""
    redis_url: str = "redis://redis:6379/0"
    """Also redis+sentinel:// and redis+cluster://."""
    volume: str = "main"
    """Which of the volumes in this Redis: part of all its keys."""
    replication_factor: int = Field(3, ge=1, le=16)
    """Copies of each chunk in a new volume."""
    chunk_size: int = CHUNK_BYTES_DEFAULT
    """Of a new volume: a power of two from 1 KiB to 64 MiB."""
    root_uid: int = 0
    """Who owns the root directory of a new volume."""
    root_gid: int = 0
    """The group of that directory."""
    suspect_after_seconds: float = Field(SUSPECT_AFTER_SECONDS, gt=0)
    """A node that was not heard for so long is asked after all others."""
    dead_after_seconds: float = Field(DEAD_AFTER_SECONDS, gt=0)
    """A node that was not heard for so long is dead: what it had is copied elsewhere."""
    returns_tolerated: int = Field(RETURNS_TOLERATED, ge=0)
    """A node that came back more often within ten minutes is not trusted at once."""
    session_lease_seconds: float = Field(60, gt=0)
    """A mount may be away for so long and keep what it has open."""
    trash_days: float = Field(1, ge=0)
    """Removed files can be restored so long; 0: not at all."""
    trash_free_share_min: float = Field(0.1, ge=0, le=1)
    """Below this share of free space the trash is emptied before its time, the oldest first."""
    orphan_grace_seconds: float = Field(30, ge=0)
    """An unlinked file that nobody is known to have open lives this long: longer than the metadata
    deadline of a mount, so that an open under way always finds it."""
    condemned_grace_seconds: float = Field(60, ge=0)
    """Extents that no file shows any more stay on the nodes this long, for readers with an older map."""
    garbage_grace_seconds: float = Field(3600, ge=0)
    """An extent that no file ever showed is kept this long after its session has ended."""
    garbage_brake_share: float = Field(0.05, ge=0, le=1)
    """Garbage above this share of a node's extents is not deleted before somebody confirms it."""
    garbage_brake_extents: int = Field(100, ge=0)
    """So many extents never wait for that, unless they are more than half of what the node has."""
    garbage_interval_seconds: float = Field(600, gt=0)
    """How often garbage is looked for."""
    snapshot_interval_seconds: float = Field(3600, ge=0)
    """How often a snapshot of the metadata is stored on the nodes; 0: never."""
    snapshots_apart_seconds: float = Field(60, ge=0)
    """At least so long, also when the changes after the last one cannot be followed any more."""
    tail_interval_seconds: float = Field(2, gt=0)
    """How often what changed after the snapshot is stored on the nodes too."""
    compaction_quiet_seconds: float = Field(10, ge=0)
    """A chunk with a long list of segments is compacted when nobody wrote to it for so long."""
    compaction_interval_seconds: float = Field(5, gt=0)
    """How often such chunks are looked for."""
    compaction_bytes_per_second: float = Field(16 * MIB, gt=0)
    """Written by compaction, all copies counted."""
    background_interval_seconds: float = Field(1, gt=0)
    """How often all other background jobs look for something to do."""
    repair_wait_seconds: float = Field(60, ge=0)
    """A dead node may come back for so long before its copies are made elsewhere; for the last copy nobody waits."""
    drain_grace_seconds: float = Field(35, ge=0)
    """An upload that began before a node was drained may be committed so much later."""
    survey_interval_seconds: float = Field(3600, gt=0)
    """All files are looked at when the nodes change, and this often."""
    rebalance_interval_seconds: float = Field(60, gt=0)
    """How often full nodes give to emptier ones."""
    metadata_deadline_seconds: float = Field(30, gt=0)
    """How long a call waits for Redis before it fails."""
    accept_data_loss: bool = False
    """Work with a Redis that does not sync every write."""
    log_level: str = "info"
    """debug, info, warning or error."""
