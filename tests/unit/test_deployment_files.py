"""What is in deploy/ for operators fits the programs: schemas, names of settings, options, versions."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fusefs.__main__ import _parser, _settings
from servers.naming.settings import NamingSettings
from servers.storage.settings import Settings
from tests.support.processes import CHECKOUT

KUBERNETES_VERSIONS = ("1.30", kubernetes_validate.latest_version())
DEPLOY = CHECKOUT / "deploy"
MANIFESTS = [*sorted((DEPLOY / "kubernetes").glob("*.yaml")), DEPLOY / "kubernetes/consumer.yaml.example"]
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SERVER_VARIABLES = {name.upper() for name in (*NamingSettings.model_fields, *Settings.model_fields)}
MOUNT_VARIABLES = {"NAMING_URL", "MIN_WRITE_REPLICAS", "DURABILITY", "LOG_LEVEL"}
OTHER_VARIABLES = {"POD_NAME"}


def resources() -> Iterator[dict[str, Any]]:
    for manifest in MANIFESTS:
        yield from yaml.safe_load_all(manifest.read_text())


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod specification of all that runs."""
    for resource in resources():
        if resource["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_as_kubernetes_schemas_want_them(manifest: Path, version: str) -> None:
    found = list(yaml.safe_load_all(manifest.read_text()))
    assert found
    for resource in found:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_wrong_manifest_would_be_noticed() -> None:
    wrong = next(resource for resource in resources() if resource["kind"] == "StatefulSet")
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSIONS[0], strict=True)


def test_pods_of_servers_may_nothing() -> None:
    """As in compose.yaml: not root, no capability, a root file system to read only. The mount alone may more."""
    names = set()
    for name, pod in pods():
        names.add(name)
        (container,) = pod["containers"]
        if name == "mount":
            assert container["securityContext"] == {"privileged": True}
            continue
        assert pod["securityContext"]["runAsNonRoot"]
        rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == rights
    assert names == {"redis", "naming-server", "storage-server", "mount"}


def test_pods_are_given_variables_that_their_programs_know() -> None:
    for name, pod in pods():
        known = MOUNT_VARIABLES if name == "mount" else SERVER_VARIABLES | OTHER_VARIABLES
        given = {variable["name"] for variable in pod["containers"][0].get("env", [])}
        assert given <= known, name


def test_services_reach_the_ports_that_the_pods_listen_on() -> None:
    listening = {
        pod_name: {port["containerPort"] for port in pod["containers"][0].get("ports", [])} for pod_name, pod in pods()
    }
    services = [resource for resource in resources() if resource["kind"] == "Service"]
    assert len(services) == 3
    for service in services:
        name = service["metadata"]["name"]
        assert {port["port"] for port in service["spec"]["ports"]} == listening[name]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_as_systemd_wants_them(unit: Path, tmp_path: Path) -> None:
    """With this machine's Python in place of the one in /opt/dcs."""
    here = tmp_path / unit.name.replace("@.", "@5001.")
    here.write_text(unit.read_text().replace("/opt/dcs/.venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", here], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if here.name in line]
    assert not complaints


def test_units_give_variables_that_their_programs_know() -> None:
    for unit in UNITS:
        for line in re.findall(r"^Environment=(.*)", unit.read_text(), re.MULTILINE):
            assert {word.partition("=")[0] for word in line.split()} <= SERVER_VARIABLES, unit.name


def test_the_mount_takes_the_options_of_the_fstab_example(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("12345678")
    (line,) = (line for line in (DEPLOY / "systemd/fstab.example").read_text().splitlines() if not line.startswith("#"))
    source, mountpoint, kind, options, dump, check = line.split()
    assert (kind, dump, check) == ("fuse.dcs", "0", "0")
    options = options.replace("/etc/dcs/secret", str(secret))
    arguments: argparse.Namespace = _parser().parse_args([mountpoint, "-o", f"naming_url={source},{options}"])
    settings = _settings(arguments, {})
    assert (settings.naming_urls, settings.allow_other) == (source, True)


def test_the_images_hold_the_versions_of_the_lock_file() -> None:
    """deploy/images/lock was called after the last change of deploy/requirements.lock."""
    pinned = versions(DEPLOY / "requirements.lock")
    for name, wanted in (("server", "fastapi"), ("fuse", "pyfuse3")):
        in_image = versions(DEPLOY / f"images/{name}.lock")
        assert wanted in in_image
        assert in_image.items() <= pinned.items(), f"{name}.lock differs: call deploy/images/lock"


def test_every_package_in_an_image_has_hashes() -> None:
    for lock in (DEPLOY / "images").glob("*.lock"):
        for package in re.split(r"\n(?=\S)", lock.read_text().strip()):
            assert re.fullmatch(r"[\w.-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", package), package[:60]


def test_the_example_of_env_names_the_variables_of_the_compose_files() -> None:
    files = "".join(file.read_text() for file in (CHECKOUT / "compose.yaml", *DEPLOY.glob("compose.*.yaml")))
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", files))
    used = defaults.keys() - {"IMAGE_TAG"}
    shown = dict(re.findall(r"^(\w+)=(.*)", (CHECKOUT / ".env.example").read_text(), re.MULTILINE))
    assert shown.keys() == used
    assert shown == {name: defaults[name] for name in used}


def versions(lock: Path) -> dict[str, str]:
    """By the name that packages are compared by."""
    found = re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}
