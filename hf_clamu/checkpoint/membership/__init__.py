"""Who is in a ledger, proven without showing who else is.

hash_tree    the Merkle tree of RFC 6962: its root, the path of a leaf, and what a path leads to
tasks_tree   the tree of the tasks of a ledger, on which the ledger's digest rests
proof        proofs that a task is, or is not, in a ledger
"""
