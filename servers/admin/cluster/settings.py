"""Settings of a local cluster, from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from servers.admin.cluster.errors import ClusterProblem

Port = Annotated[int, Field(ge=1, le=65_535)]


class ClusterSettings(BaseSettings):
    """DCS_HOME, DCS_REDIS_PORT, DCS_NAMING_PORT, DCS_STORAGE_PORTS; a port that is None is chosen or kept."""

    model_config = SettingsConfigDict(env_prefix="DCS_", env_ignore_empty=True)

    home: Path = Path("~/.local/share/dcs")
    redis_port: Port | None = None
    naming_port: Port | None = None
    storage_ports: Annotated[tuple[Port, ...], NoDecode] | None = None
    """One storage node for each, at least three for three replicas; written 5001,5002,5003."""

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @field_validator("storage_ports", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        # A single number may come as one: it is JSON.
        return str(value).split(",") if isinstance(value, str | int) else value


def read_settings() -> ClusterSettings:
    """From the environment. Raises ClusterProblem, which names the variable."""
    try:
        return ClusterSettings()
    except ValidationError as error:
        first = error.errors()[0]
        raise ClusterProblem(f"DCS_{str(first['loc'][0]).upper()}: {first['msg']}") from error
