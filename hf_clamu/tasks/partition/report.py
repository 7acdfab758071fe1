"""What a partition gave, and how far that is from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PartitionReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionReport:
    """What a cut gave, and what was asked for.

    Args:
        num_rows (`int`): rows of the data set.
        num_used (`int`): rows that are in a task; never in two.
        num_validation (`int`): of these, validation examples.
        num_tasks (`int`): tasks made.
        num_tasks_wanted (`int`, *optional*): tasks asked for.
        examples (*tuple* of numbers): minimum, median and maximum of the examples per task, validation included.
        examples_wanted (`int`, *optional*): examples asked for per task, validation included.
        labels (*tuple* of numbers, *optional*): minimum, median and maximum of the different labels per task; `None`
            where no label column was named.
        num_shared (`int`): different contents that occur in more than one task. Rows are never shared, but data sets
            hold the same text or image twice, and a content of a forgotten task may be in another one.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from hf_clamu.tasks import partition_uniform
    >>> dataset = Dataset.from_dict({"text": ["a", "b", "a", "c", "d"]})
    >>> _, report = partition_uniform(dataset, num_tasks=2, examples_per_task=3)
    >>> report.is_short, report.num_used, report.examples
    (True, 5, (2, 2.5, 3))

    ```
    """

    num_rows: int
    num_used: int
    num_validation: int
    num_tasks: int
    num_tasks_wanted: int | None
    examples: tuple[int, float, int]
    examples_wanted: int | None
    labels: tuple[int, float, int] | None
    num_shared: int

    @property
    def num_left_over(self) -> int:
        """Rows in no task."""
        return self.num_rows - self.num_used

    @property
    def is_short(self) -> bool:
        """Whether there are fewer tasks, or fewer examples in one of them, than were asked for."""
        return self.num_tasks < (self.num_tasks_wanted or 0) or self.examples[0] < (self.examples_wanted or 0)

    def __str__(self) -> str:
        def asked(number: int | None) -> str:
            return "" if number is None else f" (asked for: {number:,})"

        tasks = "1 task" if self.num_tasks == 1 else f"{self.num_tasks:,} tasks"
        text = (
            f"{tasks}{asked(self.num_tasks_wanted)} of {_shown(self.examples)} examples{asked(self.examples_wanted)}"
        )
        text += "" if self.labels is None else f" and {_shown(self.labels)} labels"
        text += f"; {self.num_used:,} of {self.num_rows:,} rows used, {self.num_left_over:,} left over"
        return f"{text}; {self.num_shared:,} contents in more than one task"


def _shown(spread: tuple[int, float, int]) -> str:
    low, middle, high = spread
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {middle:g})"
