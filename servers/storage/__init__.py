"""The storage node: keeps replicas of extents on one disk and serves them over HTTP."""
