"""What every part of the cluster agrees on: ids, names, geometry, checksums, wire formats.

Pure functions and values; nothing here opens a socket or a file.
"""
