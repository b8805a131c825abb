"""`python /app/cli.py [--naming-url URL] create|read|size|delete ...`: the `dcs` command under its older name."""

from servers.admin.__main__ import main

main()
