"""The servers of a Distributed Chunk Storage cluster, their clients and the admin command."""
