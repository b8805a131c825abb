"""The mount's side of the metadata: a session and batches of operations."""
