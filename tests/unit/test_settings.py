"""Settings: what the README says of them is what the code has, and a server tells all of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from fusefs.settings import MountSettings
from servers.admin.cluster import ports
from servers.naming.settings import NamingSettings
from servers.serving.settings import settings_help, shown_default
from servers.storage.settings import Settings as StorageSettings
from tests.support.processes import CHECKOUT

SERVERS: tuple[type[BaseSettings], ...] = (NamingSettings, StorageSettings)
OF_CLIENTS = {
    "DCS_HOME": "~/.local/share/dcs",
    "DCS_REDIS_PORT": str(ports.REDIS_PORT),
    "DCS_NAMING_PORT": str(ports.NAMING_PORT),
    "DCS_STORAGE_PORTS": ",".join(map(str, ports.STORAGE_PORTS)),
    "MIN_WRITE_REPLICAS": str(MountSettings.__dataclass_fields__["min_write_replicas"].default),
    "DURABILITY": "fsync",
    "DCS_SECRET_FILE": "",
    "DCS_SECRET": "",
}


def settings_of_the_readme() -> dict[str, str]:
    """Each setting that a table has, and its default there."""
    found: dict[str, str] = {}
    readme = (CHECKOUT / "README.md").read_text()
    for names, default in re.findall(r"^\| (`[A-Z_`, ]+`) \| *(.*?) *\|", readme, re.MULTILINE):
        every = re.findall(r"[A-Z_]+", names)
        defaults = default.replace("`", "").split(", ") if len(every) > 1 else [default.replace("`", "")]
        found.update(zip(every, defaults * len(every) if len(defaults) == 1 else defaults, strict=True))
    return found


def test_the_readme_has_settings_and_defaults_of_the_code() -> None:
    ours = OF_CLIENTS | {
        name.upper(): shown_default(field.get_default())
        for kind in SERVERS
        for name, field in kind.model_fields.items()
    }
    said = settings_of_the_readme()
    assert len(said) > 30
    assert not said.keys() - ours.keys()
    in_words = {"HOST", "PORT", "RESERVE_BYTES"}
    assert {name: default for name, default in said.items() if name not in in_words} == {
        name: ours[name] for name in said if name not in in_words
    }


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_tells_what_each_of_its_settings_is(kind: type[BaseSettings]) -> None:
    said = settings_help(kind)
    for name, field in kind.model_fields.items():
        assert f"\n  {name.upper()}={shown_default(field.get_default())}\n      " in said
        assert field.description


@pytest.mark.parametrize("setting", ["PORT=x", "DATA_DIR=", "LOG_LEVEL=loud", "SCRUB_PERIOD_SECONDS=0"])
def test_a_storage_node_says_in_one_line_which_setting_is_wrong(setting: str, tmp_path: Path) -> None:
    name, _, value = setting.partition("=")
    environment = {"DATA_DIR": str(tmp_path), "DCS_SECRET": "secret-secret", "PORT": "0", name: value}
    done = subprocess.run(
        [sys.executable, "-m", "servers.storage"], env=environment, cwd=CHECKOUT, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"storage node: {name}")
    assert done.stderr.count("\n") == 1
