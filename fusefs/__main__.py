"""`python -m fusefs MOUNTPOINT`: mounts a volume.

Without --foreground the command returns once the mount is there, and a daemon serves it. With
-o it takes the options of mount(8), so that `mount -t fuse.dcs URL DIR` and /etc/fstab work
through `mount.fuse.dcs`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fusefs.mount import CannotMount, check_mountpoint, run
from fusefs.settings import MIB, MountSettings, SettingsError, load_secret
from servers.client.naming import parse_urls

DEFAULT_NAMING_URL = "http://localhost:8000"
IGNORED_OPTIONS = frozenset(
    {
        "rw",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "nofail",
        "_netdev",
        "defaults",
        "nosuid",
        "nodev",
        "exec",
        "relatime",
        "nodiratime",
        "async",
    }
)
"""Options of mount(8) that ask for what is so anyway, or that mount(8) itself has dealt with."""
FLAG_OPTIONS = {
    "ro": "read_only", "allow_other": "allow_other", "noexec": "noexec", "noatime": "noatime",
    # mount(8) keeps suid and dev to itself, so that they have names of ours too.
    "suid": "allow_suid", "dev": "allow_dev", "allow_suid": "allow_suid", "allow_dev": "allow_dev",
}  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusefs", description="Mounts a Distributed Chunk Storage volume on a directory."
    )
    parser.add_argument("mountpoint", type=Path, help="an existing directory")
    parser.add_argument("--naming-url", help=f"naming servers, comma separated (NAMING_URL; {DEFAULT_NAMING_URL})")
    parser.add_argument("--allow-other", action="store_true", help="let other users in; the kernel checks permissions")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--foreground", "-f", action="store_true", help="stay, and log to stderr")
    parser.add_argument("--attribute-seconds", type=float, help="how long names and attributes are cached (1)")
    parser.add_argument("--dirty-mib", type=int, help="written data held at most, before write(2) waits (256)")
    parser.add_argument("--cache-mib", type=int, help="read data held at most (64)")
    parser.add_argument("--allow-suid", action="store_true", help="honour set-user-id bits")
    parser.add_argument("--allow-dev", action="store_true", help="honour device files")
    parser.add_argument("--noexec", action="store_true", help="execute nothing that lies on it")
    parser.add_argument("--noatime", action="store_true", help="do not note when files were read")
    parser.add_argument("--metrics", type=int, metavar="PORT", help="tell Prometheus on this port of 127.0.0.1")
    parser.add_argument("--log-level", default=os.environ.get("LOG_LEVEL", "info"), help="debug, info, warning, error")
    parser.add_argument("--log-file", type=Path, help="where the daemon logs; by default the system's log")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTION[=VALUE],...",
                        help="ro, allow_other, allow_suid, allow_dev, noexec, noatime, naming_url=, "
                        "attribute_seconds=, dirty_mib=, cache_mib=, metrics=, log_level=, log_file=, "
                        "secret_file=")  # fmt: skip
    return parser


def _take_options(arguments: argparse.Namespace, environment: dict[str, str]) -> None:
    """Lays the -o options over the arguments. Raises SettingsError."""
    for option in ",".join(arguments.options).split(","):
        name, _, value = option.partition("=")
        if not option or name in IGNORED_OPTIONS or name.startswith(("x-", "comment")):
            continue
        if name in FLAG_OPTIONS:
            setattr(arguments, FLAG_OPTIONS[name], True)
        elif name == "secret_file":
            environment["DCS_SECRET_FILE"] = value
        elif name in ("naming_url", "log_level"):
            # A comma ends an option, so naming servers are listed with + here.
            setattr(arguments, name, value.replace("+", ","))
        elif name == "log_file":
            arguments.log_file = Path(value)
        elif name in ("attribute_seconds", "dirty_mib", "cache_mib", "metrics"):
            try:
                setattr(arguments, name, float(value) if name == "attribute_seconds" else int(value))
            except ValueError:
                raise SettingsError(f"-o {name}={value}: a number is wanted") from None
        else:
            raise SettingsError(f"-o {option}: no such option; see --help")


def _settings(arguments: argparse.Namespace, environment: dict[str, str]) -> MountSettings:
    """Raises SettingsError, ValueError."""
    _take_options(arguments, environment)
    urls = arguments.naming_url or environment.get("NAMING_URL") or DEFAULT_NAMING_URL
    parse_urls(urls)  # Raises ValueError while there is somebody to read it.
    durability = environment.get("DURABILITY", "")
    if durability not in ("", "close", "fsync"):
        raise SettingsError(f"DURABILITY={durability}: close or fsync is wanted")
    try:
        replicas = int(environment.get("MIN_WRITE_REPLICAS", "2"))
    except ValueError:
        raise SettingsError("MIN_WRITE_REPLICAS: a number is wanted") from None
    limits: dict[str, int | float] = {"min_write_replicas": replicas}
    if environment.get("WRITE_BACK_SECONDS"):  # Nobody should need it but tests.
        try:
            limits["write_back_seconds"] = float(environment["WRITE_BACK_SECONDS"])
        except ValueError:
            raise SettingsError("WRITE_BACK_SECONDS: a number is wanted") from None
    if arguments.attribute_seconds is not None:
        limits["attribute_seconds"] = arguments.attribute_seconds
    if arguments.dirty_mib is not None:
        limits["dirty_bytes_max"] = arguments.dirty_mib * MIB
    if arguments.cache_mib is not None:
        limits["cache_bytes_max"] = arguments.cache_mib * MIB
    if not 0 <= (arguments.metrics or 0) < 65536:
        raise SettingsError(f"--metrics {arguments.metrics}: a port is wanted")
    if any(value <= 0 for name, value in limits.items() if name != "attribute_seconds"):
        raise SettingsError("sizes and counts must be at least 1")
    if not limits.get("attribute_seconds", 0) >= 0:
        raise SettingsError(f"--attribute-seconds {arguments.attribute_seconds}: 0 or more is wanted")
    return MountSettings(
        mountpoint=arguments.mountpoint.absolute(), naming_urls=urls, secret=load_secret(environment),
        allow_other=arguments.allow_other, read_only=arguments.read_only, allow_suid=arguments.allow_suid,
        allow_dev=arguments.allow_dev, noexec=arguments.noexec, noatime=arguments.noatime,
        sync_on_close=durability == "close", source=urls.replace(",", "+"), metrics_port=arguments.metrics or 0,
        **limits,  # type: ignore[arg-type]  # names and types are those above
    )  # fmt: skip


def _configure_logging(level: str, file: Path | None, foreground: bool) -> None:
    """Raises SettingsError."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise SettingsError(f"--log-level {level}: debug, info, warning or error is wanted")
    if file is not None:
        try:
            handler: logging.Handler = logging.FileHandler(file)
        except OSError as error:
            raise SettingsError(f"--log-file {file}: {error.strerror}") from error
    elif foreground:
        handler = logging.StreamHandler()
    else:
        try:
            handler = logging.handlers.SysLogHandler("/dev/log")
        except OSError:
            handler = logging.NullHandler()
    logging.basicConfig(
        level=level.upper(), handlers=[handler], format="%(asctime)s %(levelname)s dcs-mount %(name)s: %(message)s"
    )


def _serve(settings: MountSettings, ready: Callable[[], None]) -> int:
    try:
        return run(settings, ready)
    except BaseExceptionGroup as group:
        known = group.subgroup(CannotMount)
        if known is None:
            raise
        error: BaseException = known
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _daemonize(settings: MountSettings) -> int:
    """Returns in the parent once the mount is there, or 1 with the reason on stderr."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        if said != "ready":
            print(f"dcs mount: {said or 'the daemon ended at once; see its log'}", file=sys.stderr)
            return 1
        return 0
    os.close(reading)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    pipe_to_parent = os.fdopen(writing, "w")

    def ready() -> None:
        pipe_to_parent.write("ready")
        pipe_to_parent.close()

    try:
        status = _serve(settings, ready)
    except CannotMount as error:
        with contextlib.suppress(ValueError):
            pipe_to_parent.write(str(error))
            pipe_to_parent.close()
        status = 1
    except Exception:
        logging.getLogger(__name__).exception("the mount ends by a bug")
        raise
    os._exit(status)


def main(given: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(given)
    environment = dict(os.environ)
    try:
        settings = _settings(arguments, environment)
        check_mountpoint(settings.mountpoint)
        _configure_logging(arguments.log_level, arguments.log_file, arguments.foreground)
        if not arguments.foreground:
            return _daemonize(settings)
        return _serve(settings, lambda: None)
    except (SettingsError, CannotMount, ValueError) as error:
        print(f"dcs mount: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
