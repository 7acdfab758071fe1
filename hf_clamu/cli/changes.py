"""The steps that `unmerge`, `add` and `update` share: open, save, and the receipt that they print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hf_clamu.cli.interruption import expect_result
from hf_clamu.cli.models import load_model, open_model
from hf_clamu.cli.output import emit, is_main_process, note, quieten, require_empty_output, table
from hf_clamu.cli.terminal.program import command_line, same_command

if TYPE_CHECKING:
    from hf_clamu.models.modeling_clamu import ClamuModel
    from hf_clamu.operations.effects.values import ChangeEffect
    from hf_clamu.operations.lifecycle.target import ModelTarget

__all__ = ["OpenChange", "effect_lines", "open_change", "receipt_lines", "report_dry_run"]

_MOST_ROWS = 20
_LEFT = "Old commits of {} still hold the forgotten tasks: clamu erase {} removes them for good."


@dataclass(frozen=True, kw_only=True)
class OpenChange:
    """A model that a command is about to change: locked, recovered and loaded.

    Args:
        target (`ModelTarget`): where it is, and where the result goes.
        model (`ClamuModel`): the model.
        erase_history (`bool`, *optional*): remove old commits of a Hub id when the result is saved; `None` says how.
        is_dry (`bool`): the result is looked at only: nothing is locked, recovered, changed or saved.
        max_drop (`float`, *optional*): the most that a task which stays may lose of its validation score.
        key (`Path`, *optional*): file of the private key that signs the result.
    """

    target: ModelTarget
    model: ClamuModel
    erase_history: bool | None
    is_dry: bool = False
    max_drop: float | None = None
    key: Path | None = None

    def carry_out(self, request: Callable[..., Any], *tasks: Any, **options: Any) -> ChangeEffect | None:
        """Make a request, or a dry run of it, and return what it changes for other tasks.

        Args:
            request (*callable*): method of the model.
            tasks: its tasks.
            options: its other options.
        """
        options |= {**self.target.options(), "max_drop": self.max_drop}
        if self.is_dry:
            effect: ChangeEffect = request(*tasks, dry_run=True, **options)
            return effect
        self.require_writable()
        request(*tasks, **options)
        return self.model.last_effect

    def require_writable(self) -> None:
        """Refuse an output or a folder of receipts that cannot be written, before anything is trained."""
        from hf_clamu.storage.replace import require_replaceable

        target = self.target
        if target.has_result and target.output is not None:
            require_empty_output(target.output)
        if not target.receipts.is_dir():
            require_replaceable(target.receipts)

    def save(self) -> None:
        """Save the changed model, and do what is left to do then: receipts, the archive, old commits."""
        target = self.target
        if is_main_process():
            if target.is_on_hub and self.erase_history is None:
                note(_LEFT.format(target.source, target.source))
            expect_result(target.source if target.is_on_hub else Path(target.name).resolve())
        target.save(self.model, erase_history=bool(self.erase_history), signing_key=self.key)

    def require_signer(self) -> None:
        """Refuse a key that is not that of the model's signature, before anything is done."""
        if self.key is None or self.target.output is not None or not is_main_process():
            return
        from hf_clamu.hub.pull import resolve_folder
        from hf_clamu.operations.signed.signing import require_signer
        from hf_clamu.signing import load_signing_key

        require_signer(resolve_folder(self.target.source), load_signing_key(self.key))

    def sign(self) -> None:
        """Sign the folder of the result and the receipts that led to it; a Hub id was signed when it was pushed.

        Of a run that died after its push the statements are written now.
        """
        if self.key is None or not is_main_process():
            return
        from hf_clamu.operations.signed.signing import Signing, sign_model
        from hf_clamu.signing import load_signing_key

        key, state, receipts = load_signing_key(self.key), self.model.state_digest(), self.target.receipts
        if self.target.is_on_hub:
            if not self.model.receipts:
                from hf_clamu.hub.pull import resolve_folder

                Signing.begun(resolve_folder(self.target.name), state, key, receipts=receipts).write_statements()
            return
        keeps_source = self.target.output is not None
        signed = sign_model(Path(self.target.name), state, key, receipts=receipts, keeps_source=keeps_source)
        note(f"Signed with the key {signed.key_id[:16]}…: {signed.signature}, {signed.num_statements} statements.")

    def then(self, *, is_plain: bool) -> list[str]:
        """Return what to do next, as commands.

        Args:
            is_plain (`bool`): the request needed no data, checkpoints or archive but those that the model names, so
                that `verify` needs none either.
        """
        from hf_clamu.operations.lifecycle.target import receipts_of

        target = self.target
        if target.is_on_hub and not self.erase_history:
            return [command_line("erase", target.source)]
        if is_plain:
            return [command_line("verify", target.name)]
        is_usual = target.receipts == receipts_of(target.name)
        return [command_line("receipts", target.name, *([] if is_usual else ["--receipts", str(target.receipts)]))]

    def receipt_values(self, receipt: Mapping[str, Any], effect: ChangeEffect | None = None) -> dict[str, Any]:
        """Return a receipt, the file that has it, and what it changed for other tasks where that is known."""
        from hf_clamu.operations.lifecycle.receipts import receipt_path

        known = {} if effect is None else {"effect": effect.to_dict()}
        return {"receipt": receipt, "receipt_file": str(receipt_path(self.target.receipts, receipt)), **known}


@contextmanager
def open_change(
    folder: str,
    *,
    output: Path | None,
    receipts: Path | None,
    archive: str | None,
    erase_history: bool | None,
    dry_run: bool = False,
    max_drop: float | None = None,
    key: Path | None = None,
) -> Iterator[OpenChange]:
    """Lock a model, recover what a run that died has left (and say so on stderr), and load it.

    A dry run loads it, and neither locks nor recovers.

    Args:
        folder (`str`): folder or Hub id of the model.
        output (`Path`, *optional*): written instead of it.
        receipts (`Path`, *optional*): folder of the receipts.
        archive (`str`, *optional*): folder or place on the Hub of the task vectors.
        erase_history (`bool`, *optional*): remove old commits of a Hub id; `None` asks, before anything is done.
        dry_run, max_drop: see `OpenChange`.
        key (`Path`, *optional*): see `OpenChange`; the result is signed at the end, also if nothing was to do.
    """
    from hf_clamu.operations.lifecycle.target import open_target, target_to_read

    if key is not None:
        from hf_clamu.signing import load_signing_key

        load_signing_key(key)  # one that cannot sign should show now
    if dry_run:
        quieten()
        target = target_to_read(folder, output=output, receipts=receipts, archive=archive)
        yield OpenChange(target=target, model=open_model(folder), erase_history=False, is_dry=True, max_drop=max_drop)
        return
    if erase_history is None and output is None and not Path(folder).is_dir():
        erase_history = _asked_to_erase(folder)
    quieten()
    with open_target(folder, output=output, receipts=receipts, archive=archive, say=note) as target:
        if not target.has_result and output is not None:
            require_empty_output(output)
        # The result, if an earlier run had saved it.
        model = load_model(target.name if target.has_result else target.source)
        change = OpenChange(target=target, model=model, erase_history=erase_history, max_drop=max_drop, key=key)
        change.require_signer()
        yield change
        change.sign()


def _asked_to_erase(repo_id: str) -> bool | None:
    """Return what somebody at the terminal wants of the history of a repo; None if nobody is there."""
    if not (is_main_process() and sys.stdin.isatty()):
        return None
    question = f"Old commits of {repo_id} will still hold what leaves it. Erase its history for good afterwards?"
    return typer.confirm(question, default=False, err=True)


def receipt_lines(values: Mapping[str, Any]) -> list[str]:
    """Return readable lines about the receipt of a change."""
    return [
        f"state before {values['receipt']['digests']['before']}",
        f"state after  {values['receipt']['digests']['after']}",
        f"Receipt: {values['receipt_file']} (remove its part 'private' before you show it to others).",
    ]


def report_dry_run(change: OpenChange, effect: ChangeEffect, as_json: bool) -> None:
    """Print what a request would change for the tasks that stay."""
    values = {"status": "dry run", "output": change.target.name, "effect": effect.to_dict()}
    count = f"{effect.num_tasks_after} tasks instead of {effect.num_tasks_before}"
    then = [same_command(without="--dry-run")]
    head = f"Dry run: nothing was changed. {change.target.name} would have {count}."
    emit(as_json, values, lambda: "\n".join([head, *effect_lines(effect)]), quiet=effect.changed, then=then)


def effect_lines(effect: ChangeEffect | None) -> list[str]:
    """Return readable lines about what a request changes for the tasks that stay; none if that is not known."""
    if effect is None:
        return []
    worst = "unknown" if effect.worst_drop is None else f"{100 * effect.worst_drop:.1f} points"
    lines = [
        f"Other tasks: {len(effect.tasks)} stay, {len(effect.changed)} of them with other weights and "
        f"{len(effect.moved)} with other cluster mates; largest loss of {effect.metric.replace('_', ' ')}: {worst}."
    ]
    if effect.unmeasured:
        lines.append(
            f"Not measured: {len(effect.unmeasured)} of them, whose validation rows are not at hand (--data FILE)."
        )
    if len(effect.unscored) > len(effect.unmeasured):
        lines.append(f"Without validation rows: {len(effect.unscored) - len(effect.unmeasured)} of them.")
    sizes = f"{effect.num_bytes_before / 1e6:.2f} MB before, {effect.num_bytes_after / 1e6:.2f} MB after"
    closing = f"Delta, masks, features: {sizes}. {effect.seconds['total']:.1f} s."
    return [*lines, *_task_rows(effect), *_cluster_rows(effect), closing]


def _task_rows(effect: ChangeEffect) -> list[str]:
    """Return the tasks for whom something changes, those that lose most first."""
    shown = {one: effect.tasks[one] for one in effect.tasks if one in {*effect.changed, *effect.moved}}
    rows = [
        (
            name,
            task.cluster_before,
            task.cluster_after,
            str(task.num_validation),
            _percent(task.score_before),
            _percent(task.score_after),
        )
        for name, task in sorted(shown.items(), key=lambda item: -(item[1].drop or 0.0))
    ]
    columns = ("task", "cluster before", "cluster after", "validation rows", "score before", "score after")
    return _cut(columns, rows, left=(0, 1, 2))


def _cluster_rows(effect: ChangeEffect) -> list[str]:
    """Return the clusters, unless each is of one task."""
    counts = {name: (one.num_tasks_before, one.num_tasks_after) for name, one in effect.clusters.items()}
    if max((max(pair) for pair in counts.values()), default=0) <= 1:
        return []
    rows = [
        (name, *map(str, counts[name]), _percent(one.score_before), _percent(one.score_after))
        for name, one in effect.clusters.items()
    ]
    return _cut(("cluster", "tasks before", "tasks after", "score before", "score after"), rows)


def _cut(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    if not rows:
        return []
    more = [f"… and {len(rows) - _MOST_ROWS} more: --json lists all."] if len(rows) > _MOST_ROWS else []
    return ["", table(columns, rows[:_MOST_ROWS], left=left), *more, ""]


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f} %"
