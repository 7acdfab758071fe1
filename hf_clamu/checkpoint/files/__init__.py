"""Files of a saved model: read with suspicion, hashed while others are written.

integrity.py  the files of a folder, compared with its ledger
unchanged.py  what was computed from files that did not change since
proofs.py     which files hold which tensors
tensors.py    masks, factors, features and anchors
shards.py     tensors in several files, read and written
written.py    hashing files while the next ones are written
"""
