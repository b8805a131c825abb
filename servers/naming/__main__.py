"""`python -m servers.naming`: starts a naming server. Settings come from the environment."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from servers.naming.app import make_app
from servers.naming.redis_connection import UnsafeRedis
from servers.naming.routes.ops import ops_lane
from servers.naming.service import Service
from servers.naming.settings import NamingSettings
from servers.serving.access import RequireSecret, SecretError, load_secret
from servers.serving.metered import MeteredApp, metered_lane
from servers.serving.sealed import SealedApp
from servers.serving.server import CannotListen, configure_logging, listen, serve
from servers.serving.settings import settings_help, wrong_setting


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m servers.naming", description=__doc__, epilog=settings_help(NamingSettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--host", help="address to listen on (HOST)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes any (PORT)")
    parser.add_argument("--port-file", type=Path, help="write the port there once it listens")
    parser.add_argument(
        "--i-accept-data-loss", action="store_true", help="work with a Redis that does not sync every write"
    )
    arguments = parser.parse_args()
    given = {name: value for name in ("host", "port") if (value := getattr(arguments, name)) is not None}
    if arguments.i_accept_data_loss:
        given["accept_data_loss"] = True
    try:
        settings = NamingSettings(**given)
        configure_logging(settings.log_level)
        file = os.environ.get("DCS_SECRET_FILE")
        secret = load_secret(Path(file) if file else None, os.environ.get("DCS_SECRET"))
        service = Service(settings, secret.text)
        bound = listen(settings.host, settings.port)
        asyncio.run(service.store.check())
    except ValidationError as error:
        print(f"naming server: {wrong_setting(error)}", file=sys.stderr)
        return 1
    except (ValueError, SecretError, CannotListen, UnsafeRedis) as error:
        print(f"naming server: {error}", file=sys.stderr)
        return 1
    logging.getLogger(__name__).info("naming server of volume %s", settings.volume)
    lanes = [metered_lane(ops_lane(service.store), service.requests, "ops_batch")]
    app = MeteredApp(make_app(service), service.requests)
    serve(SealedApp(RequireSecret(app, secret)), lanes, secret, bound, port_file=arguments.port_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
