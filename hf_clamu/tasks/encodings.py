"""The encoded tasks of one run: each is encoded once, by whichever step needs it first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch

from hf_clamu.tasks.dataset import TaskDataset
from hf_clamu.tasks.encoding import EncodedTask
from hf_clamu.tasks.limits import ModelLimits

__all__ = ["ENCODED_BYTES", "Encodings"]

ENCODED_BYTES = 1 << 30
# Tensors of one whole number below this are kept once: masks of ones, and labels.
_SMALL = 256


class Encodings:
    """Encodes tasks, and keeps as many of them as fit into 1 GiB; the least recently used one goes first.

    Args:
        processor (*tokenizer or image processor*, *optional*): turns rows into tensors.
        limits (`ModelLimits`, *optional*): of the model that it is for; a row that it cannot take is refused.
    """

    def __init__(self, processor: Any, limits: ModelLimits | None = None) -> None:
        self._processor = processor
        self._limits = limits
        # By task and rows: before and after an update a task has other rows. The most recently used last.
        self._kept: OrderedDict[tuple[str, object], EncodedTask] = OrderedDict()
        self._bytes = 0
        self._constants: dict[tuple[torch.dtype, torch.Size, int], torch.Tensor] = {}

    def of(self, tasks: TaskDataset, task_id: str) -> EncodedTask:
        """Return a task's encoded examples.

        Args:
            tasks (`TaskDataset`): has the task. Selections of one data set share what is kept.
            task_id (`str`): the task.

        Raises:
            TaskNotFoundError: if there is no such task.
            TaskDataError: if a row cannot be encoded; the message names task, column and row.
        """
        key = (task_id, tasks.content(task_id))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        encoded = self._shared(tasks.encode(task_id, self._processor, self._limits))
        self._kept[key] = encoded
        self._bytes += encoded.nbytes
        while self._bytes > ENCODED_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return encoded

    def _shared(self, encoded: EncodedTask) -> EncodedTask:
        """Return the same examples, whose masks and labels are tensors that other examples have, too.

        A short text's mask and label take many times their size as tensors of their own.
        """
        train, validation = (
            tuple({key: self._constant(tensor) for key, tensor in example.items()} for example in examples)
            for examples in (encoded.train, encoded.validation)
        )
        return replace(encoded, train=train, validation=validation)

    def _constant(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() or tensor.is_complex() or not tensor.numel():
            return tensor
        least, most = (int(end) for end in tensor.aminmax())
        if least != most or not 0 <= least < _SMALL:
            return tensor
        return self._constants.setdefault((tensor.dtype, tensor.shape, least), tensor)
