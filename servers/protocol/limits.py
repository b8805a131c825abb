"""The limits of a volume, each in one place and with its reason."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

NAME_BYTES_MAX = 255
"""A single name; NAME_MAX of limits.h."""
PATH_BYTES_MAX = 4095
"""A path or a symlink's target; PATH_MAX of limits.h without its NUL."""
LINKS_MAX = 65_000
"""Hard links to one file, as ext4 has it; more is EMLINK."""
DEPTH_MAX = 4096
"""Directories above one another up to which a directory is moved to another parent; deeper is EINVAL. All the way
up is walked, so that none comes to lie in itself. A path has at most 2,048 names."""
XATTR_NAME_BYTES_MAX = 255
"""XATTR_NAME_MAX of linux/limits.h."""
XATTR_VALUE_BYTES_MAX = 64 * KIB
"""XATTR_SIZE_MAX of linux/limits.h."""
XATTR_TOTAL_BYTES_MAX = 64 * KIB
"""All names of one inode together, what listxattr(2) can return: XATTR_LIST_MAX."""
FILE_BYTES_MAX = 2**52
"""4 PiB: below 2**53, so that sizes are exact in Redis's Lua, whose numbers are doubles."""

CHUNK_BYTES_MIN = 1 * KIB
CHUNK_BYTES_MAX = 64 * MIB
CHUNK_BYTES_DEFAULT = 8 * MIB
BLOCK_BYTES = 64 * KIB
"""The unit that one CRC32C covers; reads are verified in whole blocks."""

REPLICAS_MAX = 16
"""Copies of each extent that can be asked for."""
CHUNKS_PER_CALL_MAX = 256
"""Chunks that one metadata operation may touch, so that no call holds Redis for long."""
SEGMENTS_PER_COMMIT_MAX = 16_384
"""Parts of chunks in one commit."""
APPENDED_CHUNKS_MAX = 2048
"""A write through O_APPEND is whole or not at all: the largest, 1 MiB, in the smallest chunks, and as much again."""
LISTED_CHUNKS_MAX = 65_536
"""A file with more chunks than this is cut in steps that look at so many."""
LET_GO_AT_ONCE_MAX = 64
"""A chunk that showed more extents than this lets go of them in the background."""
LONG_SEGMENTS_MIN = 64
"""A chunk of so many segments is compacted once nobody writes to it for a while."""
VERY_LONG_SEGMENTS_MIN = 1024
"""And one of so many while it is written."""
TRASH_FILES_MAX = 100_000
"""Removed files and directories that are remembered: some 300 bytes of Redis each."""
NAMES_PER_CALL_MAX = 1024
"""Directory entries in one page."""
EXTENTS_PER_CALL_MAX = 4096
"""Ids in one bulk question or order to a storage node, and in one page of its inventory."""
COPIES_PER_ORDER_MAX = 256
"""Extents that one order to copy may name."""
COPY_SOURCES_MAX = 32
OPERATIONS_PER_BATCH_MAX = 256
BATCH_BYTES_MAX = 16 * MIB

OP_WINDOW = 1024
"""How many of a session's last results Redis keeps: a retried operation is at most this far behind the newest."""
