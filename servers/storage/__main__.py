"""`python -m servers.storage`: starts a storage node. Settings come from the environment."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from pydantic import ValidationError

from servers.serving.access import RequireSecret, SecretError, load_secret
from servers.serving.metered import MeteredApp, metered_lane
from servers.serving.sealed import SealedApp
from servers.serving.server import CannotListen, address_of, configure_logging, listen, serve
from servers.serving.settings import settings_help, wrong_setting
from servers.storage.app import create_app
from servers.storage.data_directory import CannotStart
from servers.storage.node import StorageNode
from servers.storage.routes.extents import ExtentRoutes
from servers.storage.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m servers.storage", description=__doc__, epilog=settings_help(Settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--host", help="address to listen on (HOST)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes any (PORT)")
    parser.add_argument("--port-file", type=Path, help="write the port there once it listens")
    parser.add_argument("--data-dir", help="directories of the replicas, one a disk, comma separated (DATA_DIR)")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    try:
        settings = Settings(**given)
        configure_logging(settings.log_level)
        secret = load_secret(settings.dcs_secret_file, settings.dcs_secret)
        bound = listen(settings.host, settings.port)
        node = StorageNode(settings, secret, address_of(bound))
    except ValidationError as error:
        print(f"storage node: {wrong_setting(error)}", file=sys.stderr)
        return 1
    except (ValueError, SecretError, CannotListen, CannotStart) as error:
        print(f"storage node: {error}", file=sys.stderr)
        return 1
    where = ", ".join(map(str, settings.data_dir))
    logging.getLogger(__name__).info("storage node %s in %s", node.uuid, where)
    lanes = [metered_lane(lane, node.requests, lane.handler.__name__) for lane in ExtentRoutes(node).lanes()]
    app = MeteredApp(create_app(node, lanes), node.requests)
    serve(SealedApp(RequireSecret(app, secret)), lanes, secret, bound, port_file=settings.port_file)
    return 1 if node.failed else 0


if __name__ == "__main__":
    sys.exit(main())
