"""What a storage node is told by its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from servers.protocol.limits import MIB


class Settings(BaseSettings):
    """Each field is the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    data_dir: Annotated[list[Path], NoDecode] = Field([Path("/data")], min_length=1)
    """One directory for each disk, comma separated."""
    host: str = "127.0.0.1"
    """The address to bind."""
    port: int = Field(default=5001, ge=0, le=65535)
    """0 takes any free one; see port_file and the line on stdout."""
    port_file: Path | None = None
    """Where the port is written once it listens."""
    advertise: str = ""
    """host:port that others reach this node by; by default the address it is bound to."""
    naming_url: str = "http://localhost:8000"
    """Naming servers, comma separated; empty to run without."""
    rack: str = ""
    """What fails together with this node; copies go to different ones."""
    reserve_bytes: int | None = Field(default=None, ge=0)
    """Kept free on the disk; by default 1 GiB, or a hundredth of a smaller disk."""
    repair_bytes_per_second: float = Field(default=100e6, gt=0)
    """Fetched from other nodes, and read to verify, for repair; what clients do has no such limit."""
    condemned_keep_seconds: float = Field(default=24 * 3600, ge=0)
    """What was ordered deleted can be brought back for so long, while nobody needs the room; 0: deleted at once."""
    scrub_period_seconds: float = Field(default=7 * 86400, gt=0)
    """All replicas are read and verified once within this time."""
    scrub_bytes_per_second_max: float = Field(default=32 * MIB, ge=1)
    """Of one disk: where this is too little for the period, the scrub is late and says so."""
    recount_period_seconds: float = Field(default=300, gt=0)
    """The directories are compared with what should be in them once within this time."""
    damaged_grace_seconds: float = Field(default=7 * 86400, ge=0)
    """A damaged replica that was set aside is kept so long, and until its extent is healed."""
    dcs_secret_file: Path | None = None
    """Holds the cluster secret."""
    dcs_secret: str | None = None
    """The cluster secret itself, where there is no file."""
    log_level: str = "info"
    """debug, info, warning or error."""

    @field_validator("data_dir", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [Path(part.strip()) for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, Path) else value
