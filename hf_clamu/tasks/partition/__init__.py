"""Partitions of a data set into tasks: by a column, by labels, or evenly.

- `by_column`: one task for each value of a column
- `by_labels`: tasks of few labels
- `uniform`: tasks of equal size
- `ranks`: orders drawn by SHA-256
- `cut`: the data set with its task column, and the validation examples
- `report`: what a partition gave
- `public_rows`: rows of no task
"""

from hf_clamu.tasks.partition.by_column import partition_by_column
from hf_clamu.tasks.partition.by_labels import partition_by_labels
from hf_clamu.tasks.partition.report import PartitionReport
from hf_clamu.tasks.partition.uniform import partition_uniform

__all__ = ["PartitionReport", "partition_by_column", "partition_by_labels", "partition_uniform"]
