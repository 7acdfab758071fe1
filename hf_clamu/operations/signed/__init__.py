"""Signatures of a saved model and of its receipts, which form a chain that nothing drops out of unnoticed.

links.py    a receipt as a signed statement that names the one before it
chain.py    the statements of a folder, and the path of one model through them
signing.py  signing a model and what of its receipts is not signed yet
checking.py a model and its receipts, compared with what was signed
"""
