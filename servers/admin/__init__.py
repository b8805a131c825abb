"""The `dcs` command: a client of the cluster like any other.

    app, commands/       the command line: what is asked for, and how the answer is shown
    runner               a command's coroutine, its signals and its one error
    access, connection   where the servers are; operations, sessions
    tree                 names and directories
    upload, download     whole files in and out; local_source and local_sink are their local ends
    explain, fsck        where every byte lies, and whether all of it is there
    cluster/             a whole cluster on this machine

Nothing here knows a server but through `servers.client`.
"""
