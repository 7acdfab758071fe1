"""What somebody else can check: without the owners' data, without training, without trust in who runs the models.

report       what was checked, with a verdict for each
audit        one model: its delta is the sum of its tasks; two states: what left is what the ledger says
receipts     whether a receipt is that of a change of state
derived      what a model derives from its tasks: clusters, alpha, masks
saved        reading saved models whose every byte counts
evidence/    evidence of one request, for its owner or an auditor
"""
