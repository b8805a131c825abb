"""The naming server's routes: `ops` for mounts, `files` for people, `cluster` and `extents` for nodes and operators."""
