"""Local models that were finetuned elsewhere.

local_models.py      reading them, one after the other, as task vectors
plain_checkpoint.py  a checkpoint of transformers: its files, and whether it fits a base model
adapter_checkpoint.py  an adapter that PEFT saved: what it changes in the weights, or its parameters
shared_factors.py      adapters of one common factor, which add up as they are
model_names.py       what a model and its checkpoints call their tensors
likeness.py          whether settings and processors are the base model's
"""
