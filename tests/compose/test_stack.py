"""The stack of compose.yaml on a real Docker engine, used and hurt. The tests share it, in this order."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.commands import MIB, sha256_of, write_pattern
from tests.support.compose_stack import Stack
from tests.support.manifest import Manifest
from tests.support.processes import CHECKOUT, wait_for
from tests.support.writing_program import WritingProgram

pytestmark = pytest.mark.timeout(1200)

IMAGE_BYTES_MAX = 260_000_000
UP_SECONDS_MAX = 60.0
"""On an idle machine it is under 15 s; here others may be at work."""


def readme_commands(heading: str) -> str:
    block = re.search(rf"## {heading}\n.*?```sh\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return block[1]


def test_the_quick_start_of_the_readme_works_word_for_word(stack: Stack) -> None:
    """From nothing: build, up, a file through the mount, the four commands, two nodes more, down."""
    took = stack.build()
    print(f"built in {took:.1f} s")
    before_down, _, down = readme_commands("With Docker").rpartition("docker compose down")
    said = stack.shell(before_down)
    stack.wait_usable()
    assert (stack.mountpoint / "hello.txt").read_text() == "Hello, world\n"
    assert (stack.directory / "readme.copy").read_bytes() == (stack.directory / "README.md").read_bytes()
    assert f"{(stack.directory / 'README.md').stat().st_size}\n" in said
    assert not (stack.mountpoint / "readme").exists(), "it was deleted"
    wait_for(lambda: len(alive(stack)) == 5, "the two nodes more take part")
    stack.shell(f"docker compose down{down}")
    assert not stack.containers()
    assert not stack.mountpoint.is_mount()


def test_it_is_up_soon_and_has_everything(stack: Stack) -> None:
    """`down` keeps the volumes: what the test before wrote is there after `up`."""
    took = stack.up()
    print(f"from `docker compose up` to a usable mount: {took:.1f} s")
    assert took < UP_SECONDS_MAX
    assert (stack.mountpoint / "hello.txt").read_text() == "Hello, world\n"


def test_a_file_written_on_the_host_is_read_in_another_container(running: Stack, peer: str) -> None:
    digest = write_pattern(running.mountpoint / "from-host", 20 * MIB)
    assert running.exec(peer, "sha256sum", "/mnt/dcs/from-host").split()[0] == digest
    running.exec(peer, "sh", "-c", "echo from the peer >/mnt/dcs/from-peer")
    assert (running.mountpoint / "from-peer").read_text() == "from the peer\n"


def test_new_nodes_get_new_extents(running: Stack) -> None:
    """With five nodes, each keeps some of the extents; the first three go on under their old identity."""
    running.compose("up", "--detach", "--scale", "storage_server=3")
    three = {node["uuid"] for node in nodes(running) if node["state"] == "alive"}
    running.environment["STORAGE_SERVERS"] = "5"  # For all tests that follow.
    running.compose("up", "--detach", "--wait")
    wait_for(lambda: len(alive(running)) == 5, "five nodes are alive")
    assert three <= {node["uuid"] for node in nodes(running)}
    new = {node["id"] for node in nodes(running) if node["uuid"] not in three}
    deadline, used = time.monotonic() + 60, set[int]()
    while not new <= used:
        assert time.monotonic() < deadline, f"only {used} were used"
        for number in range(8):
            (running.mountpoint / f"spread-{number}").write_bytes(b"x" * 5000)
            used |= nodes_of(running, f"/spread-{number}")


def test_each_container_is_killed_in_turn_under_load(running: Stack, peer: str, tmp_path: Path) -> None:
    """Redis, the naming server and each storage node die and come back: a program that writes meanwhile sees no error.

    Then the mount dies: the program is told at once, and after the restart every promise is kept, here and in a
    container that has seen the mount from before.
    """
    noted, directory = tmp_path / "manifest", running.mountpoint / "promises"
    directory.mkdir()
    victims = [*running.containers("redis", "naming_server", "storage_server"), *running.containers("fuse")]
    with WritingProgram(directory, noted, 1) as program:
        for victim in victims:
            program.must_go_on()
            running.crash(victim)
            print(f"{victim} killed: longest stall {program.stall_since_last_asked():.1f} s")
        assert program.errno() in (errno.ENOTCONN, errno.ECONNABORTED)
    running.wait_usable()
    manifest = Manifest()
    manifest.read(noted)
    assert manifest.promised > len(victims)
    manifest.check(directory, manifest.names)
    kept = next(name for name, digest in manifest.kept.items() if digest != "-")
    seen = running.exec(peer, "sha256sum", f"/mnt/dcs/promises/{kept}").split()[0]
    assert seen == manifest.kept[kept], "another container sees the mount that came after"
    log = running.compose("logs", "fuse")
    assert "cleared away the dead mount on /mnt/dcs" in log


def test_stopped_and_started_everything_is_there(running: Stack) -> None:
    """Also what was written a moment before and only waited in the mount."""
    digest = write_pattern(running.mountpoint / "before-stop", 10 * MIB)
    running.compose("stop", seconds=180)
    assert not running.mountpoint.is_mount()
    running.compose("start", seconds=180)
    running.wait_usable()
    assert sha256_of(running.mountpoint / "before-stop") == digest
    assert json.loads(running.dcs("status", "--json"))["missing"] == 0


def test_the_images_are_small_and_have_no_compiler(stack: Stack) -> None:
    for image in stack.images:
        size = int(stack.engine.docker("image", "inspect", "--format", "{{.Size}}", image))
        print(f"{image}: {size / 1e6:.0f} MB")
        assert size < IMAGE_BYTES_MAX
        found = stack.engine.docker(
            "run", "--rm", "--network", "none", image, "sh", "-c", "command -v cc gcc ld make || echo none"
        )
        assert found == "none\n"


def test_the_mounts_image_holds_only_what_the_mount_may_import(stack: Stack) -> None:
    script = "import importlib.util as u; print([m for m in ('fastapi', 'redis', 'uvicorn') if u.find_spec(m)])"
    assert stack.engine.docker("run", "--rm", stack.images[1], "python", "-c", script) == "[]\n"
    servers = stack.engine.docker("run", "--rm", stack.images[1], "ls", "/app/servers").split()
    assert set(servers) - {"__init__.py", "__pycache__"} == {"admin", "client", "protocol"}


def test_the_servers_have_no_rights(running: Stack) -> None:
    """Not root, no capability, none to be had, a root file system that cannot be written."""
    for container in running.containers("redis", "naming_server", "storage_server"):
        status = running.exec(container, "cat", "/proc/1/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split()[0] != "0", container
        assert [int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")] == [0] * 5
        assert fields["NoNewPrivs"] == "1"
        assert running.inspect(container)["HostConfig"]["ReadonlyRootfs"]
        refused = running.exec(container, "sh", "-c", "touch /new 2>&1; touch /usr/bin/new 2>&1; true")
        assert refused.count("Read-only file system") == 2, refused


def test_no_secret_is_in_an_image_or_in_what_inspect_shows(running: Stack, tmp_path: Path) -> None:
    secret = running.secret()
    assert len(secret) == 64
    containers = running.containers()
    for container in containers:
        assert secret not in json.dumps(running.inspect(container)), container
        assert running.engine.docker("diff", container).find("/run/dcs/secret") == -1, "only in the volume"
    assert secret not in running.compose("logs")
    for image in running.images:
        assert secret not in running.engine.docker("history", "--no-trunc", image)
        tar = tmp_path / "image.tar"
        running.engine.docker("save", "--output", tar, image)
        assert subprocess.run(["grep", "-qaF", "--", secret, tar], timeout=120).returncode == 1, image
        tar.unlink()
    readers = {
        c for c in running.containers() if any(m.get("Name", "").endswith("_secret") for m in mounts(running, c))
    }
    assert readers == set(running.containers("naming_server", "storage_server", "fuse"))


def test_a_route_without_the_secret_answers_401_from_another_container(running: Stack, peer: str) -> None:
    ask = "curl" if running.exec(peer, "sh", "-c", "command -v curl || true") else ""
    assert not ask, "the image grew a program that this test could use"
    network = f"{running.project}_default"
    for server, path in (("naming_server:8000", "/v1/nodes"), ("storage_server:5001", "/v1/inventory")):
        script = (
            "import http.client\n"
            f"c = http.client.HTTPConnection('{server}', timeout=10); c.request('GET', '{path}')\n"
            "print(c.getresponse().status)"
        )
        said = running.engine.docker("run", "--rm", "--network", network, running.images[1], "python", "-c", script)
        assert said == "401\n", server
    script = "import socket\ntry: socket.create_connection(('redis', 6379), 3)\nexcept OSError: print('unreachable')"
    said = running.engine.docker("run", "--rm", "--network", network, running.images[1], "python", "-c", script)
    assert said == "unreachable\n", "Redis is for the naming server alone"


def test_the_mount_works_with_less_than_privileged(running: Stack) -> None:
    """deploy/compose.caps.yaml: /dev/fuse and CAP_SYS_ADMIN are enough, also after a crash."""
    overlay = ("--file", "compose.yaml", "--file", "deploy/compose.caps.yaml")
    running.compose(*overlay, "up", "--detach", "fuse", seconds=180)
    running.wait_usable()
    (fuse,) = running.containers("fuse")
    assert not running.inspect(fuse)["HostConfig"]["Privileged"]
    content = hashlib.sha256(b"less").hexdigest()
    (running.mountpoint / "less").write_text(content)
    running.crash(fuse)
    running.wait_usable()
    assert (running.mountpoint / "less").read_text() == content


def test_what_the_mount_lacks_it_says_in_one_line(running: Stack) -> None:
    """No /dev/fuse, no shared propagation: the line has what mends it. The engine's own refusal is in the README."""
    image, network = running.images[1], f"{running.project}_default"
    volumes = ("--volume", f"{running.project}_secret:/run/dcs:ro")
    command = ("run", "--rm", "--network", network, *volumes, "--env", "NAMING_URL=http://naming_server:8000")
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in stderr_of(running, *command, image)
    powers = ("--device", "/dev/fuse", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor:unconfined")
    said = stderr_of(running, *command, *powers, image, "sh", "-c", "timeout 5 /app/mount")
    assert "mount --make-rshared DIR" in said
    assert "Traceback" not in said


def nodes(stack: Stack) -> list[dict]:
    return json.loads(stack.dcs("nodes", "--json"))


def alive(stack: Stack) -> list[dict]:
    return [node for node in nodes(stack) if node["state"] == "alive"]


def nodes_of(stack: Stack, path: str) -> set[int]:
    return set(map(int, re.findall(r'"node": (\d+)', stack.dcs("explain", "--json", path))))


def mounts(stack: Stack, container: str) -> list[dict]:
    return stack.inspect(container)["Mounts"]


def stderr_of(stack: Stack, *arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], env=dict(stack.engine.environment), capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    return done.stderr
