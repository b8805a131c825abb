"""What a storage node is told by its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings


class Settings(BaseSettings):
    """Each field is the environment variable of its name in capitals."""

    data_dir: Path = Path("/data")
    host: str = "127.0.0.1"
    """The address to bind."""
    port: int = Field(default=5001, ge=0, le=65535)
    """0 takes any free one; see port_file and the line on stdout."""
    port_file: Path | None = None
    advertise: str = ""
    """host:port that others reach this node by; by default the address it is bound to."""
    naming_url: str = "http://localhost:8000"
    """Naming servers, comma separated; empty to run without."""
    rack: str = ""
    reserve_bytes: int | None = Field(default=None, ge=0)
    """Kept free on the disk; by default 1 GiB, or a hundredth of a smaller disk."""
    repair_bytes_per_second: float = Field(default=100e6, gt=0)
    """Fetched from other nodes, and read to verify, for repair; what clients do has no such limit."""
    condemned_keep_seconds: float = Field(default=24 * 3600, ge=0)
    """What was ordered deleted can be brought back for so long, while nobody needs the room; 0: deleted at once."""
    dcs_secret_file: Path | None = None
    dcs_secret: str | None = None
    log_level: str = "info"
