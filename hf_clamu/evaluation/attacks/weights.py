"""The weights that are attacked, and what each makes of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hf_clamu.evaluation.attacks.rows import AttackedTask
from hf_clamu.evaluation.attacks.scores import (
    EXTRACTION,
    extraction_strength,
    guided,
    membership_scores,
    predictions,
)
from hf_clamu.serving.routing import find_route, select_route
from hf_clamu.tasks import Example, traits_of
from hf_clamu.tasks.encoding import padding_id
from hf_clamu.training import LiveModel, logits_and_labels

__all__ = ["Attacker", "RowScores", "difference"]

# Rows that a model reads together: many labels, or few texts, whose logits over a vocabulary take memory.
_LABELS, _TEXTS = 64, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScores:
    """What attacks make of all rows under some weights.

    Args:
        members (*dict* of `str` to *list* of `float`): scores of the rows that were trained on, by attack.
        held_out (*dict* of `str` to *list* of `float`): scores of the others.
    """

    members: dict[str, list[float]]
    held_out: dict[str, list[float]]


class Attacker:
    """Scores the rows of tasks under whatever weights are selected.

    Rows are read in the order of their digests, members and held-out rows apart, so that a score depends on the
    weights and the rows alone.

    Args:
        tasks (*sequence* of `AttackedTask`): the rows.
        kind (`str`): of the tasks.
        attacks (*tuple* of `str`): which ones.
        processor (*optional*): the tokenizer.
    """

    def __init__(self, tasks: Sequence[AttackedTask], kind: str, attacks: tuple[str, ...], processor: Any) -> None:
        self.tasks, self.kind, self.attacks, self._processor = tasks, kind, attacks, processor

    def served(self, model: Any) -> RowScores:
        """Score each task under what serves it: its cluster, or the global model if it is not merged."""
        return self._scores(lambda examples: self._of_model(model, examples), lambda task: _serve(model, task))

    def selected(self, model: Any) -> RowScores:
        """Score all tasks under the weights that a model has."""
        return self._scores(lambda examples: self._of_model(model, examples), lambda task: None)

    def guided(self, before: Any, after: Any, weight: float) -> RowScores:
        """Return extraction strengths, each task under what serves it in both, the model before guiding the other."""

        def serve(task: AttackedTask) -> None:
            for model in (before, after):
                _serve(model, task)

        def measured(examples: Sequence[Example]) -> Iterator[dict[str, float]]:
            for (_, before_LV, right_L), (_, after_LV, _) in zip(
                self._predictions(before, examples), self._predictions(after, examples), strict=True
            ):
                yield {EXTRACTION: extraction_strength(guided(before_LV, after_LV, weight), right_L)}

        return self._scores(measured, serve)

    def _scores(
        self,
        measured: Callable[[Sequence[Example]], Iterator[dict[str, float]]],
        serve: Callable[[AttackedTask], None],
    ) -> RowScores:
        found = RowScores(members={}, held_out={})
        for task in self.tasks:
            serve(task)
            for examples, scores in ((task.members, found.members), (task.held_out, found.held_out)):
                for row in measured(examples):
                    for name, score in row.items():
                        scores.setdefault(name, []).append(score)
        return found

    def _of_model(self, model: Any, examples: Sequence[Example]) -> Iterator[dict[str, float]]:
        for example, log_p_LV, right_L in self._predictions(model, examples):
            scores = membership_scores(log_p_LV, right_L, example, self.kind, self._processor)
            if EXTRACTION in self.attacks:
                scores[EXTRACTION] = extraction_strength(log_p_LV, right_L)
            yield {name: scores[name] for name in self.attacks}

    def _predictions(
        self, model: Any, examples: Sequence[Example]
    ) -> Iterator[tuple[Example, torch.Tensor, torch.Tensor]]:
        live = LiveModel(model, device=model.device, pad_token_id=padding_id(self._processor))
        size = _TEXTS if traits_of(self.kind).writes_text else _LABELS
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            with torch.no_grad():
                batches = list(logits_and_labels(live, part, self.kind))
            rows = (row for logits, labels in batches for row in predictions(logits, labels, self.kind))
            for example, (log_p_LV, right_L) in zip(part, rows, strict=True):
                yield example, log_p_LV, right_L


def _serve(model: Any, task: AttackedTask) -> None:
    select_route(model, find_route(model, None, task.task_id, fallback="global"))


class _WithWeights(torch.nn.Module):
    """A live model that answers with other weights than it has.

    Args:
        model (`ClamuModel`): the model, which stays as it is.
        weights (*dict* of `str` to `torch.Tensor`): in place of its own.
    """

    def __init__(self, model: Any, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model: Any = model
        self._weights = weights

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.model.device

    def forward(self, **batch: torch.Tensor) -> Any:
        """Run the model with the weights."""
        return torch.func.functional_call(self.model, self._weights, (), batch)


@contextmanager
def difference(before: Any, after: Any) -> Iterator[_WithWeights | None]:
    """Give the base model plus what the delta of one copy has over that of the other.

    That is the sum of the vectors of the tasks that left, less those that joined: of one task its local model, as
    finetuning left it, up to the rounding of the grid.

    Args:
        before, after (`ClamuModel`): held by the caller; the base model is selected in `after` meanwhile.

    Yields:
        *module*, *optional*: to be run like the model; `None` if the two deltas are not of the same weights.
    """
    deltas = [model.merged.state.delta for model in (before, after)]
    shapes = [{name: steps.shape for name, steps in delta.items()} for delta in deltas]
    if shapes[0] != shapes[1]:
        yield None
        return
    codecs = [model.merged.checkpoint.arguments.codec for model in (before, after)]
    after.set_base()
    parameters, weights = dict(after.named_parameters()), {}
    for name in deltas[0]:
        moved = codecs[0].decode(deltas[0][name]) - codecs[1].decode(deltas[1][name])
        base = parameters[name].detach()
        weights[name] = (base.double() + moved.to(base.device)).to(base.dtype)
    yield _WithWeights(after, weights)
