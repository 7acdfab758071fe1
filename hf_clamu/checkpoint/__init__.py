"""The saved model.

layout.py               names and roles of its files, in one table
configuration_clamu.py  `ClamuConfig`, the content of config.json
base_reference.py       the entry that names the base model
parsed_config.py        the entries of a configuration, parsed once
ledger.py               who is merged, and the digests of all files
masks.py                a mask as one tensor
processor_files.py      the one form of a processor's files
checkpoint.py           `Checkpoint`, a merged model without its base model's weights
reader.py               reading a saved model with suspicion
writer.py               writing one, byte for byte the same
comparison.py           comparing two of them
card/                   the model card
files/                  reading files with suspicion
"""
