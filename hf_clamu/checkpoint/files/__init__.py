"""Files of a saved model: read with suspicion.

integrity.py  the files of a folder, compared with its ledger
tensors.py    masks, factors, features and anchors
shards.py     tensors in several files, read and written
"""
