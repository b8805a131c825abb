"""The keys of a volume in Redis.

All begin with `dcs:{VOLUME}`; the braces put them into one Redis Cluster slot. Only the function
library (`lua/`) writes them. None is the prefix itself, which each function is given as its key: so a
Redis Cluster that moves the slot lets no function see half a volume.

    key after the prefix    type    value                                   invariant
    :volume                 hash    uuid, chunk_size, replicas, seq,        seq only grows; numbers are never used
                                    next_ino, next_session, next_node,      again; `safe`, the reason, is there only
                                    next_order, leader_epoch, files,        in SAFE mode (an operator who knows better
                                    directories, extents, bytes, lease_ms,  deletes it); `held` while an operator
                                    orphan_grace_ms, condemned_grace_ms,    holds deletions, `brake` while garbage
                                    outage_ms, alive_ms, safe, held,        waits to be confirmed
                                    brake, brake_off_ms, trash_ms,
                                    trash_bytes; stored_seq, the latest
                                    change that the storage nodes have too;
                                    mark, for the tail of a snapshot;
                                    broken_ms, when a node came back last
                                    that had not ended in order
    :i:INO                  string  the inode (fields: lua/common.lua)      nlink counts the entries below :d:
    :d:INO                  hash    name -> {ino, cookie}                   the same names as :n:INO
    :n:INO                  zset    name by cookie                          a cookie is unique in its directory,
                                                                            and stays with its name
    :m:INO                  hash    chunk index -> flat array of segments   sorted, no overlap, not beyond the size;
                                                                            see lua/chunks.lua
    :t:INO:SEQ              hash    as :m:, put aside to be let go of       in :purge
    :a:INO                  hash    extended attribute -> value             the inode counts them
    :o:INO                  hash    session that has it open -> its op      the mirror of :so:
    :x:SESSION              hash    extent counter -> {ino, chunk, ...}     exactly the extents that a map shows,
                                                                            with every chunk that shows them
                                                                            (of a map put aside: perhaps)
    :sessions               zset    session by end of lease, ms             0: over, and being forgotten
    :s:SESSION              hash    host, what, opened_s, told              told: see mount_facts.py
    :so:SESSION             set     inodes it has open
    :op:SESSION             hash    n modulo 1,024 -> n, reply              of the last mutation with that slot
    :orphans                zset    inode without a name, by due ms         nlink is 0, or it is a stub
    :purge                  zset    m:INO or t:INO:SEQ to let go of, by ms  of m:INO the inode is gone
    :condemned              zset    extent by due ms                        no map shows it, nor ever will again
    :condemned_nodes        hash    extent -> nodes that still have it      the same extents as :condemned
    :collected              set     session some of whose extents were      it is over; no commit shows one of its
                                    deleted as garbage                      extents that none showed before
    :garbage                zset    extent by when it was first seen on a   no map shows it, its session is over (as it
                                    node, ms                                was seen last)
    :judged                 hash    node number -> when, ms                 of the garbage known then the node has
                                                                            no more than the brake allows
    :long                   zset    INO:INDEX by when it grew last, ms, 0   its list of segments was long then; a chunk
                                    for a very long one; or until when it   that is gone may be in it
                                    is put off
    :trash                  zset    inode that was removed, by due ms       a file of it is in :orphans until then
    :trash_from             hash    inode -> {parent, name, ...}            the same inodes; lua/trash.lua
    :snapshots              zset    change number by when it was taken, ms  their parts and tails are on storage nodes
    :thin                   set     extents with too few replicas           a map shows them; right for files that
                                                                            are not in :recount
    :recount                hash    inode -> the change that asked for      a file, or gone
                                    another number of copies
    :dropped                zset    extent + node that is not to have it    no map lists that node for it
                                    any more, by due ms
    :fetching               zset    extent + node that is told to copy it,  until a map lists that node for it; then, or
                                    by due ms                               when it is due, it is not here any more
    :survey                 string  what the leader knows of the replicas   only told, never decided from
    :damaged                hash    extent + node -> {s, why}               a map shows them
    :nodes                  hash    node number -> record                   numbers are never used again
    :node_facts             hash    node number -> start, held, lost, JSON, what the node said last of itself, and
                                    ended, broken_ms        when it last came back without an
                                                            orderly end before
    :doubted                hash    node number -> since when, ms           may have lost replicas: lua/damage.lua
    :node_numbers           hash    node uuid -> number
    :forgotten              set     uuid of a node that is gone for good    in :node_numbers, not in :nodes
    :draining               hash    node number -> since when, ms; anew as  in :nodes; it takes no new copies
                                    a map comes to name it
    :log                    stream  SEQ-0: {session, verb, inodes, names}   every mutation, in order
    :leader                 string  {who runs the background jobs, epoch}   expires by itself
"""

from __future__ import annotations


def prefix(volume: str) -> str:
    """The first part of every key. Raises ValueError for a name that would break the hash tag."""
    if not volume.isascii() or not volume.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"VOLUME={volume!r}: a volume's name is made of letters, digits, - and _")
    return f"dcs:{{{volume}}}"


def glob_literal(text: str) -> str:
    """The text as a glob pattern of Redis that matches it alone."""
    return "".join("\\" + c if c in "*?[]\\" else c for c in text)
