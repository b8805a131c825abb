"""The storage node's routes: `extents` is hot and runs on the fast lane, `control` is everything else."""
