"""Where the naming servers are and what the cluster secret is: from the command line, the environment, DCS_HOME."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servers.admin.errors import Problem, one_line

if TYPE_CHECKING:
    from servers.admin.cluster.home import Home

DEFAULT_NAMING_URL = "http://localhost:8000"


@dataclass(frozen=True)
class Access:
    naming_urls: str
    """One or more, comma separated."""
    secret: str

    def __repr__(self) -> str:
        return f"Access({self.naming_urls!r})"


def find_access(naming_urls: str | None, environment: Mapping[str, str]) -> Access:
    """Raises Problem when there is no secret."""
    return Access(find_naming_urls(naming_urls), _secret(environment))


def find_naming_urls(given: str | None) -> str:
    """What was given, else where the local cluster's naming server is, else the usual place."""
    if given:
        return given
    from servers.admin.cluster.programs import naming_url

    kept = _home().kept_ports()
    return naming_url(kept) if kept else DEFAULT_NAMING_URL


def secret_file(environment: Mapping[str, str]) -> Path | None:
    """The file that holds the secret; None when the environment itself does."""
    if file := environment.get("DCS_SECRET_FILE"):
        return Path(file)
    return None if environment.get("DCS_SECRET") else _home().secret_file


def _secret(environment: Mapping[str, str]) -> str:
    file = secret_file(environment)
    if file is None:
        text = environment["DCS_SECRET"]
    else:
        try:
            text = file.read_text("ascii")
        except FileNotFoundError as error:
            raise Problem(
                f"No cluster secret: {os.fspath(file)} is not there; set DCS_SECRET_FILE or DCS_SECRET"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise Problem(f"Cannot read the cluster secret from {one_line(error)}") from error
    if not text.strip():
        raise Problem("The cluster secret is empty; set DCS_SECRET_FILE or DCS_SECRET")
    if not (text.strip().isascii() and text.strip().isprintable()):  # It has to fit into a header.
        raise Problem("The cluster secret is to be one line of ASCII; set DCS_SECRET_FILE or DCS_SECRET")
    return text.strip()


def _home() -> Home:
    # Imported when it is asked for: it costs more than most commands, and few clients run a cluster themselves.
    from servers.admin.cluster.home import Home
    from servers.admin.cluster.settings import read_settings

    return Home(read_settings().home)
