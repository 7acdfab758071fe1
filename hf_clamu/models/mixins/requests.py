"""Requests on a live model: forget, add and update tasks, and verify the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from hf_clamu.checkpoint.comparison import VerificationReport
from hf_clamu.models.mixins.acceptance import AcceptanceMixin
from hf_clamu.models.mixins.serving import holds_model
from hf_clamu.models.requesting import RequestOptions, cover, opened
from hf_clamu.models.verifying import verify
from hf_clamu.operations.add import add
from hf_clamu.operations.effects.values import ChangeEffect
from hf_clamu.operations.lifecycle.request_files import RequestFiles
from hf_clamu.operations.request import on_mismatch_of
from hf_clamu.operations.unmerge import unmerge
from hf_clamu.operations.update import update
from hf_clamu.storage import Archive, Journal
from hf_clamu.tasks import DataFiles, TaskDataset
from hf_clamu.training import Progress, silent_progress, undisturbed

__all__ = ["RequestsMixin"]

_Changed = TypeVar("_Changed", bound="RequestsMixin")


class RequestsMixin(AcceptanceMixin):
    """Changes of what is merged."""

    @overload
    def unmerge_task(
        self: _Changed,
        task_id: str | Sequence[str],
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        dry_run: Literal[False] = False,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed: ...

    @overload
    def unmerge_task(
        self, task_id: str | Sequence[str], *, dry_run: Literal[True], **options: Any
    ) -> ChangeEffect: ...

    @holds_model  # type: ignore[misc]  # the options of a dry run are those of the method
    def unmerge_task(
        self: _Changed,
        task_id: str | Sequence[str],
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        dry_run: bool = False,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed | ChangeEffect:
        """Forget one task or many: the result is byte for byte a build without them.

        Each named task is retrained alone (or its vector read, see `checkpoints` and `archive`), checked by digest and
        subtracted; clusters, scaling coefficient and masks are derived from the retained tasks. Afterwards the global
        model is selected. Saving or pushing is a step of its own.

        Args:
            task_id (`str` or *sequence* of `str`): the tasks to forget.
            data (`TaskDataset`, `str` or `Path`, *optional*): the data of all merged tasks; by default what the
                model was trained with in this process, or the source that its ledger names.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): folders or Hub ids of local models that
                were finetuned elsewhere (see `merge`), as they were merged: of the named tasks, and where TALL or EMR
                masks are derived again, of the retained ones, too.
            on_mismatch (`str`): `"error"`, or `"rebuild"` to rebuild from the retained tasks if data, bits or
                environment differ from the ledger, or with an archive `"localize"` to derive clusters and masks in
                this environment if it differs.
            receipt_dir (`str` or `Path`, *optional*): writes the receipt there; it is in `receipts` anyway. With
                `journal_dir` it is written when the change is saved.
            journal_dir (`str` or `Path`, *optional*): a folder for what is finished, so that an interrupted request
                goes on from there when it is repeated. It holds vectors of the named tasks, and the receipt, until
                the next `save_pretrained` or `push_to_hub` removes it. (A command gives the `Journal` that it has
                opened.)
            archive (`str` or `Path`, *optional*): a folder, or a place on the Hub, that
                `ClamuTrainer(archive_dir=...)` filled: the vectors are taken from there instead of retraining, so the
                rows of the named tasks are not needed. The next `save_pretrained` or `push_to_hub` destroys them
                there, and then receipts are written.
            dry_run (`bool`): compute the result, compare it with what is merged, and change neither model nor files.
            max_drop (`float`, *optional*): the most that a retained task may lose of its validation score, 0 to 1.
            progress (`Progress`, *optional*): shows how far it is.

        Returns:
            `ClamuModel`: the model itself; with `dry_run` the `ChangeEffect`.

        Raises:
            TaskNotFoundError: if one is not merged.
            DigestMismatchError: if data changed or the retrained bits differ; nothing is changed then.
            ArchiveError: if the archive lacks a vector or holds another one; nothing is changed then.
            EnvironmentMismatchError: if the environment differs; nothing is changed then.
            ScoreDropError: if a task would lose more than `max_drop`, or nothing tells; nothing is changed then.
            TaskDataError: if data are missing.
        """
        files = RequestFiles.of(journal_dir, receipt_dir, archive)
        options = RequestOptions(
            data=data, checkpoints=checkpoints, files=files, progress=progress, max_drop=max_drop, dry_run=dry_run
        )
        return self._unmerge({None: task_id}, on_mismatch, options)

    @holds_model
    def unmerge_requests(
        self: _Changed,
        requests: Mapping[str, str | Sequence[str]],
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed:
        """Carry out several requests to forget at once: the same bytes, one localization, and a receipt for each.

        Args:
            requests (*mapping* of `str` to `str` or *sequence* of `str`): the tasks that each request names, by what
                the request is called. Its receipt has this name and commitments to these tasks alone.
            data, checkpoints, on_mismatch, receipt_dir, journal_dir, archive, max_drop, progress: as in
                `unmerge_task`.

        Raises:
            TaskNotFoundError: if a task of any request is not merged; nothing is changed then.
        """
        files = RequestFiles.of(journal_dir, receipt_dir, archive)
        options = RequestOptions(data=data, checkpoints=checkpoints, files=files, progress=progress, max_drop=max_drop)
        self._unmerge(dict(requests), on_mismatch, options)
        return self

    @undisturbed()
    def _unmerge(
        self: _Changed, requests: Mapping[Any, str | Sequence[str]], on_mismatch: str, options: RequestOptions
    ) -> _Changed | ChangeEffect:
        named = {
            name: [self.ledger_id(one) for one in ([task_ids] if isinstance(task_ids, str) else task_ids)]
            for name, task_ids in requests.items()
        }
        way_out = on_mismatch_of(on_mismatch, "unmerge", has_archive=options.files.archive is not None)
        ids = [task_id for task_ids in named.values() for task_id in task_ids]
        with opened(self._live, options.files) as earlier:
            if cover(earlier, "unmerge", ids):
                return self
            request = self._request(options)
            return self._answer("unmerge", named, request, unmerge(request, ids, way_out), options)

    @overload
    def add_task(
        self: _Changed,
        tasks: TaskDataset | None = None,
        *,
        checkpoints: Mapping[str, str | Path] | None = None,
        data: TaskDataset | DataFiles | None = None,
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        dry_run: Literal[False] = False,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed: ...

    @overload
    def add_task(
        self, tasks: TaskDataset | None = None, *, dry_run: Literal[True], **options: Any
    ) -> ChangeEffect: ...

    @holds_model  # type: ignore[misc]  # the options of a dry run are those of the method
    @undisturbed()
    def add_task(
        self: _Changed,
        tasks: TaskDataset | None = None,
        *,
        checkpoints: Mapping[str, str | Path] | None = None,
        data: TaskDataset | DataFiles | None = None,
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        dry_run: bool = False,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed | ChangeEffect:
        """Merge more tasks: the result is byte for byte a build that had them from the start.

        Args:
            tasks (`TaskDataset`, *optional*): the new tasks, with the same columns, labels and template as the merged
                ones. Without it the checkpoints of tasks that are not merged are added.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): folders or Hub ids of local models that
                were finetuned elsewhere: of new tasks, which are not finetuned then, and where TALL or EMR masks are
                derived again, of the merged ones, too.
            data (`TaskDataset`, `str` or `Path`, *optional*): the data of the merged tasks, as in `unmerge_task`.
            receipt_dir (`str` or `Path`, *optional*): as in `unmerge_task`.
            journal_dir (`str` or `Path`, *optional*): as in `unmerge_task`.
            archive (`str` or `Path`, *optional*): a folder or a place on the Hub that gets the new vectors.
            dry_run, max_drop, progress: as in `unmerge_task`.

        Raises:
            TaskAlreadyMergedError: if one is merged already.
            DigestMismatchError: if the data of a merged task has changed.
            TaskDataError: if a folder is missing, or some tasks come with data and others without.
        """
        files = RequestFiles.of(journal_dir, receipt_dir, archive)
        options = RequestOptions(
            data=data, checkpoints=checkpoints, files=files, progress=progress, max_drop=max_drop, dry_run=dry_run
        )
        new = map(self.ledger_id, checkpoints or ()) if tasks is None else self.keyed_tasks(tasks).task_ids
        with opened(self._live, options.files) as earlier:
            if cover(earlier, "add", list(new)):
                return self
            self._live.context.require_room_for_rows()
            request = self._request(options, adds=True)
            added = request.new_tasks() if tasks is None else request.with_ledger_ids(tasks)
            return self._answer("add", {None: added.task_ids}, request, add(request, added), options)

    @overload
    def update_task(
        self: _Changed,
        tasks: TaskDataset,
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        dry_run: Literal[False] = False,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed: ...

    @overload
    def update_task(self, tasks: TaskDataset, *, dry_run: Literal[True], **options: Any) -> ChangeEffect: ...

    @holds_model  # type: ignore[misc]  # the options of a dry run are those of the method
    @undisturbed()
    def update_task(
        self: _Changed,
        tasks: TaskDataset,
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        on_mismatch: str = "error",
        receipt_dir: str | Path | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive: str | Path | Archive | None = None,
        dry_run: bool = False,
        max_drop: float | None = None,
        progress: Progress = silent_progress,
    ) -> _Changed | ChangeEffect:
        """Give merged tasks other data (some examples more, some less): the result is byte for byte a build with it.

        The tasks are retrained on the data that was merged and subtracted, finetuned on the new data and added;
        clusters, scaling coefficient and masks are derived once. A task whose data did not change is left out; if
        none did, nothing happens and there is no receipt.

        Args:
            tasks (`TaskDataset`): all rows that the tasks are to have from now on.
            data (`TaskDataset`, `str` or `Path`, *optional*): the data of all merged tasks as they were merged, as in
                `unmerge_task`.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): as in `unmerge_task`, of other tasks: one
                that came from a checkpoint cannot be given other data.
            on_mismatch (`str`): as in `unmerge_task`; with `"rebuild"` the old rows need not be there any more.
            archive (`str` or `Path`, *optional*): the old vectors are taken from there, and the new ones go there.
            receipt_dir, journal_dir, dry_run, max_drop, progress: as in `unmerge_task`.

        Raises:
            TaskNotFoundError: if one is not merged; `add_task` merges it.
            DigestMismatchError: if the old data changed or the retrained bits differ; nothing is changed then.
            TaskDataError: if the old data are missing.
        """
        files = RequestFiles.of(journal_dir, receipt_dir, archive)
        options = RequestOptions(
            data=data, checkpoints=checkpoints, files=files, progress=progress, max_drop=max_drop, dry_run=dry_run
        )
        way_out = on_mismatch_of(on_mismatch, "update", has_archive=files.archive is not None)
        with opened(self._live, options.files):
            self._live.context.require_room_for_rows()
            request = self._request(options)
            new = request.changed_tasks(tasks)
            result = update(request, new, way_out) if len(new) else None
            return self._answer("update", {None: new.task_ids}, request, result, options)

    @holds_model
    @undisturbed()
    def verify(
        self,
        *,
        data: TaskDataset | DataFiles | None = None,
        checkpoints: Mapping[str, str | Path] | None = None,
        progress: Progress = silent_progress,
    ) -> VerificationReport:
        """Build again from the data of the merged tasks and compare every byte of the saved model.

        Args:
            data (`TaskDataset`, `str` or `Path`, *optional*): as in `unmerge_task`.
            checkpoints (*mapping* of `str` to `str` or `Path`, *optional*): of all tasks that came from checkpoints.
            progress (`Progress`, *optional*): shows how far it is.

        Returns:
            `VerificationReport`: whether every file is identical, and which are not.

        Raises:
            EnvironmentMismatchError: if a rebuild here cannot give the same bits.
            DigestMismatchError: if the data of a merged task has changed.
        """
        options = RequestOptions(data=data, checkpoints=checkpoints, progress=progress)
        return verify(self._request(options), self._write_copy)
