"""What the README prints works as printed."""

from __future__ import annotations

import os
import re
import subprocess

from tests.support.cluster import SECRET, Cluster
from tests.support.processes import CHECKOUT


def test_the_rest_calls_of_the_readme_work_word_for_word(shared_cluster: Cluster) -> None:
    """All eight, in one shell; nothing of the file is left."""
    block = re.search(r"### REST\n.*?```sh\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    secret = shared_cluster.directory / "readme-secret"
    secret.write_text(SECRET)
    shared_cluster.dcs("mkdir", "greetings")
    environment = {**os.environ, "NAMING_URL": shared_cluster.naming_url, "DCS_SECRET_FILE": str(secret)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block[1]], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hello, world\n" in done.stdout
    assert '{"size":13}' in done.stdout
    assert '{"deleted":"greetings/hello.txt"}' in done.stdout
    assert shared_cluster.dcs("ls", "greetings").stdout == b""
