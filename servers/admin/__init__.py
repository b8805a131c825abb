"""The `dcs` command: a client of the cluster like any other."""
