"""A whole cluster on one machine, under one supervisor: what `dcs up` and `deploy/up` do.

    lifecycle     up, status, down: the order of things, and waiting for facts
    programs      what runs, with which command, environment and configuration
    supervisor    talking to supervisord, which restarts what dies
    health        asking each part whether it works
    mountpoint    what the kernel knows of the mount
    leftovers     processes that outlived their supervisor
    home          DCS_HOME: the files of a cluster, its secret, its lock
    ports         which ports, and why
    table         the report for people

Nothing here imports a server or the mount; they are started as anybody would start them.
"""
