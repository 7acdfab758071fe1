"""How a request is put to a live model, and how its result is compared, accepted and served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from hf_clamu.base_models.saved import clone_base
from hf_clamu.models.mixins.files import FilesMixin
from hf_clamu.models.requesting import RequestOptions, accept_vectors, log_change, make_request, require_accepted
from hf_clamu.models.state import MergedWeights
from hf_clamu.operations.effects.comparison import measure_effect
from hf_clamu.operations.effects.values import ChangeEffect
from hf_clamu.operations.request import ChangeResult, Request, RequestKind
from hf_clamu.tasks import ModelLimits

__all__ = ["AcceptanceMixin"]

_Changed = TypeVar("_Changed", bound="AcceptanceMixin")


class AcceptanceMixin(FilesMixin):
    """What all requests share."""

    def _request(self, options: RequestOptions, *, adds: bool = False) -> Request:
        self.merged.switch.check(self._parameters_by_name())  # before any data are read
        # A command has loaded the model for this request, after it opened the files.
        copy_base = partial(self._fresh_base, is_proven=options.files.is_open)
        return make_request(self._live, options, copy_base, limits=ModelLimits.of(self), adds=adds)

    def _fresh_base(self, *, is_proven: bool) -> Any:
        """Return a base model of its own for a request to train on."""
        with self.held():
            self.set_base()
            return clone_base(self, self.merged.checkpoint, is_proven=is_proven)

    def _answer(
        self: _Changed,
        kind: RequestKind,
        requests: Mapping[str | None, Sequence[str]],
        request: Request,
        result: ChangeResult | None,
        options: RequestOptions,
    ) -> _Changed | ChangeEffect:
        """Compare a result with what is merged; then serve it, if it is accepted and no dry run.

        The receipts say which requests led to it. Without a result there is nothing to do.
        """
        if result is None and not options.dry_run:
            return self
        named = [task_id for task_ids in requests.values() for task_id in task_ids]
        measures = options.dry_run or options.max_drop is not None or request.arguments.score_validation
        effect = measure_effect(request, result, kind, named, measures=measures)
        require_accepted(effect, options)
        if options.dry_run or result is None:
            return effect
        accept_vectors(request.archive)
        log = log_change(self._live, kind, requests, result, options.files, effect=effect)
        self.set_base()
        switch = self.merged.switch
        merged = MergedWeights.on(self, result.checkpoint, digests=switch.base_digests, guard=switch.guard)
        self._live.replace(merged, result.tasks_with_rows, log, effect)
        return self._serve_globally()
