"""Models as users meet them, and the mask adapters for PEFT.

modeling_clamu.py  `ClamuModel`: loading, merging, and the class of a live model
mixins/            the methods of `ClamuModel`, by concern
state.py           what a live model knows of its merging
loading.py         reading a saved model and its base
saving.py          writing a saved model, or a plain checkpoint
pushing.py         pushing to the Hub
keeping.py         the rows beside it, kept before a save and destroyed after it
exports/           what leaves for other tools, and the proof that it answers as the live model does
requesting.py      from a caller's options to a request, and from its result to a receipt
verifying.py       building again, and comparing every byte
auto.py            registration with transformers' Auto classes
mask_adapter/      clusters as adapters for PEFT
byte_tokenizer.py  the path that `byte_tokenizer` had before
"""
