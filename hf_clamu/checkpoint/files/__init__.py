"""Files of a saved model: read with suspicion, hashed while others are written.

integrity.py  the files of a folder, compared with its ledger
tensors.py    masks, factors, features and anchors
shards.py     tensors in several files, read and written
written.py    hashing files while the next ones are written
"""
