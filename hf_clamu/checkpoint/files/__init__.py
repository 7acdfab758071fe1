"""The files of a saved model on their way in: read with suspicion.

integrity.py  the files of a folder, compared with its ledger
tensors.py    masks, factors, features and anchors
"""
