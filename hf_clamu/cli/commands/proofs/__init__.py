"""The commands of `clamu` for those who check, a file for each.

sign      `sign`: sign a model and its receipts
receipts  `receipts`: list the receipts of a model, and check them against its signature
attack    `attack`: what a model leaks of a task, before and after it is forgotten

signatures.py is what other commands say of a signature, and how they refuse a model without a trusted one.
"""
