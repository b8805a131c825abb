"""Tools for the operator of a storage node, run by hand on its machine."""
