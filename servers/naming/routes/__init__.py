"""The naming server's routes: `ops` for mounts, `files` for people, `cluster` for nodes and operators."""
