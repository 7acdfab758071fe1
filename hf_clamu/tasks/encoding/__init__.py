"""Encoding: from the rows of a task to tensors in a canonical order.

- `encoders`: the encoder of each kind, registered by kind
- `texts`, `conversations`, `words`, `images`: these encoders
- `rows`: the rows of a task, one by one
- `examples`: canonical order, digest and validation split
- `batches`: padding and stacking
"""

from hf_clamu.tasks.encoding import conversations, images, texts, words  # noqa: F401 - they register their encoders
from hf_clamu.tasks.encoding.batches import collate, padding_id
from hf_clamu.tasks.encoding.encoders import encoder_for, example_encoder
from hf_clamu.tasks.encoding.examples import EncodedTask, Example, arrange, split_by_content, validation_count
from hf_clamu.tasks.encoding.rows import check_shapes, encode_rows
from hf_clamu.tasks.encoding.texts import tokenizer_limit

__all__ = [
    "EncodedTask",
    "Example",
    "arrange",
    "check_shapes",
    "collate",
    "encode_rows",
    "encoder_for",
    "example_encoder",
    "padding_id",
    "split_by_content",
    "tokenizer_limit",
    "validation_count",
]
