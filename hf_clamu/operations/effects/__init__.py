"""What a request changes for the tasks that stay.

values.py      the answer: per task and cluster, for readers and for receipts
comparison.py  comparing the state before a request with its result
"""
