"""The naming server: names, attributes and chunk maps, kept in Redis, served to mounts and people."""
