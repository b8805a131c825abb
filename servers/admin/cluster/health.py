"""Asking each part of a local cluster whether it works. Each answer is None, or what is wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx

from servers.admin.cluster import mountpoint
from servers.admin.cluster.programs import Program, redis_password
from servers.client.http import no_tls
from servers.protocol.naming_api import NODES_PATH
from servers.protocol.storage_api import HEALTH_PATH

ASK_SECONDS = 2.0


def problem_of(program: Program, naming_address: str, secret: str) -> str | None:
    match program.kind:
        case "redis":
            return _redis_problem(program.where, redis_password(secret))
        case "naming":
            return _http_problem(program.where)
        case "storage":
            return _http_problem(program.where) or _membership_problem(program.where, naming_address, secret)
        case "mount":
            return None if mountpoint.works(Path(program.where)) else "not mounted"


def _redis_problem(address: str, password: str) -> str | None:
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), ASK_SECONDS) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (part := connection.recv(256)):
                answer += part
    except OSError as error:
        return str(error)
    return None if answer == b"+OK\r\n+PONG\r\n" else answer.decode(errors="replace").strip() or "closes the connection"


def _http_problem(address: str) -> str | None:
    try:
        answer = _get(address, HEALTH_PATH)
    except httpx.TransportError as error:
        return f"does not answer ({type(error).__name__})"
    return None if answer.status_code == 200 else f"answers {answer.status_code}: {answer.text[:200]}"


def _membership_problem(address: str, naming_address: str, secret: str) -> str | None:
    """A storage node counts when the naming server has it alive."""
    try:
        answer = _get(naming_address, NODES_PATH, authorization=f"Bearer {secret}")
    except httpx.TransportError as error:
        return f"the naming server does not answer ({type(error).__name__})"
    if answer.status_code != 200:
        return f"the naming server answers {answer.status_code}: {answer.text[:200]}"
    states = {node["address"]: node["state"] for node in answer.json()["nodes"]}
    state = states.get(address, "unknown")
    return None if state == "alive" else f"{state} to the naming server"


def _get(address: str, target: str, **headers: str) -> httpx.Response:
    return httpx.get(
        f"http://{address}{target}", headers=headers, timeout=ASK_SECONDS, trust_env=False, verify=no_tls()
    )
