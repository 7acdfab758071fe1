"""Finetuning through a PEFT adapter.

space.py      `PeftSpace`, the adapter's shape and how it is merged
insertion.py  putting it into a base model, new or as it was recorded
product.py    an adapter of its own for each task, merged into the weights
export.py     the model without it, and the adapter for PEFT
idle.py       adapters that learn nothing
"""
