"""Frozen base models in 4 or 8 bits, which adapters are finetuned on (QLoRA).

settings.py  `Quantization`: transformers' `quantization_config`, checked
modules.py   the quantised layers of a live model: made ready, copied, listed
sizes.py     the bytes that they take
"""
