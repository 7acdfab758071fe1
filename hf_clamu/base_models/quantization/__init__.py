"""Frozen base models in 4 or 8 bits, which adapters are finetuned on (QLoRA).

settings.py  `Quantization`: transformers' `quantization_config`, checked
modules.py   the quantised layers of a live model: made ready, copied, listed
scales.py    double quantisation, the same for any number of threads
sizes.py     the bytes that they take
"""
