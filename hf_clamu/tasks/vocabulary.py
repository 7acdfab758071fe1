"""A check that a tokenizer knows the words of the tasks."""

from __future__ import annotations

from typing import Any

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.dataset import TaskDataset
from hf_clamu.tasks.kinds import traits_of

__all__ = ["require_known_words"]

# At this share of unknown words the tokenizer is for another language, or has lost its vocabulary.
_MOST_UNKNOWN = 0.9
_SAMPLE_TASKS = 20


def require_known_words(tasks: TaskDataset, tokenizer: Any) -> None:
    """Check that a tokenizer does not take nearly all words of the first tasks for one unknown word.

    A single task may be full of unknown words; a build of many such tasks would train on nothing.

    Args:
        tasks (`TaskDataset`): the tasks of a build; those of images pass.
        tokenizer (`transformers.PreTrainedTokenizerBase`): the tokenizer.

    Raises:
        TaskDataError: if it does.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    # Tokenizers of bytes know everything, and name their end token as the unknown one.
    if unknown is None or unknown == tokenizer.eos_token_id or traits_of(tasks.spec.kind).reads == "image":
        return
    special = set(tokenizer.all_special_ids) - {unknown}
    counts = {True: 0, False: 0}
    for task_id in tasks.task_ids[:_SAMPLE_TASKS]:
        for example in tasks.encode(task_id, tokenizer).train:
            for token in example["input_ids"].tolist():
                if token not in special:
                    counts[token == unknown] += 1
    every = counts[True] + counts[False]
    if every and counts[True] >= _MOST_UNKNOWN * every:
        raise TaskDataError(
            f"The tokenizer does not know {counts[True]} of the first {every} words and pieces of the texts, so "
            "nearly all would be the same to the model. Give the tokenizer that the model was made for."
        )
