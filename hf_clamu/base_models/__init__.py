"""Base models.

loading.py         loading the one that a build starts from
pretrained.py      loading pretrained weights, all of them
in_memory.py       a model that is given in memory
saved.py           the base model and the processor of a saved model
identity.py        what a base model is: class, weights, digest, reference
config.py          its configuration and label names
processors.py      tokenizers and image processors
byte_tokenizer.py  a tokenizer of bytes, without files
casting.py         types and devices
foreign.py         errors of other libraries, in one sentence
library_calls.py   what surrounds calls of transformers
adapters/          finetuning through a PEFT adapter
quantization/      frozen base models in 4 or 8 bits
"""
