"""Data sets cut into tasks: what each row means, its tokenised form, and digests that no row order can change.

- `kinds`: the table of task kinds
- `spec`: which column is which
- `dataset`: the tasks of a data set
- `encodings`: the encoded tasks of one run
- `keyed_ids`: commitments to ids
- `reading/`: files and data sets to the checked rows of each task
- `conversations/`: lists of messages, and the chat template that makes texts of them
- `encoding/`: rows to tensors, in canonical order
- `partition/`: tasks out of data sets that have none, and rows of no task
- `sources`: the data section of a recipe
- `builtin`: data sets that need no download
- `limits`: what a model can take
- `stored`: tasks of which the encoded examples are kept
- `near_names`: ids and labels that differ by a slip
- `vocabulary`: whether a tokenizer knows the words
"""

from hf_clamu.tasks.builtin import STDLIB_PACKAGES, digits, digits_public, stdlib_public, stdlib_text
from hf_clamu.tasks.dataset import TaskDataset
from hf_clamu.tasks.encoding import EncodedTask, Example, collate, encoder_for
from hf_clamu.tasks.encodings import Encodings
from hf_clamu.tasks.keyed_ids import keyed_id
from hf_clamu.tasks.kinds import KindTraits, TaskKind, register_kind, task_kinds, traits_of
from hf_clamu.tasks.limits import ModelLimits
from hf_clamu.tasks.partition import PartitionReport, partition_by_column, partition_by_labels, partition_uniform
from hf_clamu.tasks.partition.public_rows import PUBLIC_TASK, public_rows
from hf_clamu.tasks.sources import DataFiles, load_tasks
from hf_clamu.tasks.spec import IdsSetting, IncompleteRows, TaskSpec
from hf_clamu.tasks.stored import StoredTask, pack, packed_template, unpack
from hf_clamu.tasks.vocabulary import require_known_words

__all__ = [
    "TaskDataset",
    "TaskSpec",
    "IdsSetting",
    "IncompleteRows",
    "TaskKind",
    "KindTraits",
    "register_kind",
    "task_kinds",
    "traits_of",
    "encoder_for",
    "EncodedTask",
    "Encodings",
    "Example",
    "ModelLimits",
    "collate",
    "keyed_id",
    "load_tasks",
    "DataFiles",
    "require_known_words",
    "PUBLIC_TASK",
    "public_rows",
    "StoredTask",
    "pack",
    "packed_template",
    "unpack",
    "PartitionReport",
    "partition_by_column",
    "partition_by_labels",
    "partition_uniform",
    "STDLIB_PACKAGES",
    "digits",
    "digits_public",
    "stdlib_public",
    "stdlib_text",
]
