"""The mount: from the kernel to the naming server and the storage nodes."""
