"""Settings of a mount: its command line, its -o options and its environment, each named once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024

METADATA_DEADLINE_SECONDS = 30.0
METADATA_FIRST_BYTE_SECONDS = 2.0
FLUSH_DEADLINE_SECONDS = 30.0
SESSION_RENEW_SECONDS = 10.0
WRITE_BACK_SECONDS = 10.0
"""What is written to a file that stays open is stored and committed after so long, without fsync: the most that is lost
when this machine dies, and that other mounts see late. A third of what Linux allows its own file systems; and longer
than most programs have a file open, so that those pay nothing."""
READ_AHEAD_KIB = 4096
"""What the kernel reads ahead on this mount; its default of 128 KiB would make 32 requests of one."""


@dataclass(frozen=True, slots=True)
class MountSettings:
    mountpoint: Path
    naming_urls: str
    secret: str
    allow_other: bool = False
    read_only: bool = False
    allow_suid: bool = False
    allow_dev: bool = False
    noexec: bool = False
    noatime: bool = False
    attribute_seconds: float = 1.0
    """How long names and attributes may be remembered; more than 1 s shows others' changes late."""
    dirty_bytes_max: int = 256 * MIB
    cache_bytes_max: int = 64 * MIB
    min_write_replicas: int = 2
    sync_on_close: bool = False
    """DURABILITY=close: close(2) promises what fsync(2) does."""
    write_back_seconds: float = WRITE_BACK_SECONDS
    uploads_max: int = 6
    source: str = "dcs"
    metrics_port: int = 0
    """Of this machine, for Prometheus; 0 is none."""


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that says what to do."""


def load_secret(environment: dict[str, str]) -> str:
    """The cluster secret: DCS_SECRET_FILE, DCS_SECRET, or the local cluster's file. Raises SettingsError."""
    if environment.get("DCS_SECRET") and not environment.get("DCS_SECRET_FILE"):
        text = environment["DCS_SECRET"]
    else:
        home = environment.get("DCS_HOME") or os.path.join(os.path.expanduser("~"), ".local/share/dcs")
        file = environment.get("DCS_SECRET_FILE") or os.path.join(home, "secret")
        try:
            text = Path(file).read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the cluster secret from {file} (set DCS_SECRET_FILE): {error}") from error
    secret = text.strip()
    if not (secret and secret.isascii() and secret.isprintable()):  # It has to fit into a header.
        raise SettingsError("the cluster secret is to be one line of ASCII: set DCS_SECRET_FILE or DCS_SECRET")
    return secret
