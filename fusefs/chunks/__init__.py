"""Extents over storage nodes: store, fetch, remember. Knows nodes and bytes, neither files nor the kernel."""
