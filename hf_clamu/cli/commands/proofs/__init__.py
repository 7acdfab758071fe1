"""The commands for owners and auditors, a file for one or for two that belong together.

audit       `audit`: what the files of saved models show without data
prove       `prove` and `check`: whether a task is merged, shown to its owner alone
sign        `sign`: sign a model and its receipts
receipts    `receipts`: list the receipts of a model, and check them against its signature
attack      `attack`: what a model leaks of a task, before and after it is forgotten

signatures.py is what other commands say of a signature, and how they refuse a model without a trusted one.
"""
