"""`clamu prove` and `clamu check`: what an owner is shown of a ledger, and what they can check themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_clamu.cli.models import load_model, task_id_key
from hf_clamu.cli.options import Data, Json, ModelToChange
from hf_clamu.cli.output import emit, quieten
from hf_clamu.cli.terminal.bars import progress_bars
from hf_clamu.cli.terminal.completion import complete_task
from hf_clamu.cli.terminal.program import command_line, same_command
from hf_clamu.errors import CheckpointFormatError, RecipeError

__all__ = ["check", "prove"]

# Of a proof: it has a path of hashes for two tasks at most.
_MOST_BYTES = 1 << 24


def prove(
    folder: ModelToChange,
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="Id of the task, or the id that the ledger has for it.",
            show_default=False,
            autocompletion=complete_task,
        ),
    ],
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the proof to this file.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove to the owner of a task that it is merged, or that it is not, without showing any other task.

    With --data FILE (the owner's rows alone) their vector is computed again and compared with the ledger. Without it a
    proof is written that leads to the ledger's digest; `clamu check` reads it. Exit 1 if data and ledger disagree.
    """
    quieten()
    if data:
        if output is not None:
            raise RecipeError("--output is for proofs without data: leave out --output or --data.")
        _compare(folder, task, data, as_json)
    else:
        _write(folder, task, output, as_json)


def _compare(folder: str, task: str, data: list[Path], as_json: bool) -> None:

    found = load_model(folder).prove_task(task, data=list(map(str, data)), progress=progress_bars)
    values = {"model": folder, "task": task, **found.to_dict()}
    then = [command_line("prove", folder, task, "--output", "proof.json")] if found.is_sound else []
    emit(as_json, values, lambda: _compared_text(values), then=then)
    if not found.is_sound:
        raise typer.Exit(1)


def _compared_text(values: dict[str, Any]) -> str:
    lines = [f"{values['model']}: task {values['task']} is {'merged' if values['is_merged'] else 'not merged'}."]
    if values["is_merged"]:
        lines += [
            f"rows           {_answer(values['same_data'], 'those of the ledger', 'OTHERS than the ledger names')}",
            f"vector         {_answer(values['same_vector'], 'that of the ledger', 'ANOTHER than the ledger names')}",
            f"linear digest  {_answer(values['same_linear_digest'], 'that of the model', 'ANOTHER than it has')}",
        ]
    if values["environment_differs"]:
        lines.append(f"Vectors cannot be compared in this environment ({values['environment_differs']}).")
    return "\n".join([*lines, f"rows SHA-256   {values['data_digest']}", f"vector SHA-256 {values['vector_digest']}"])


def _answer(same: bool | None, yes: str, no: str) -> str:
    return "not compared" if same is None else yes if same else no


def _write(folder: str, task: str, output: Path | None, as_json: bool) -> None:
    from hf_clamu.checkpoint.ledger import read_ledger
    from hf_clamu.checkpoint.membership.proof import prove_membership
    from hf_clamu.checkpoint.reader import read_checkpoint
    from hf_clamu.exact import canonical_json
    from hf_clamu.hub.pull import resolve_folder
    from hf_clamu.operations.data import ledger_id
    from hf_clamu.storage import write_atomically

    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise RecipeError(f"{output} cannot be written: give the name of a file in a folder that is there (--output).")
    place = resolve_folder(folder)
    checkpoint = read_checkpoint(place)
    named = ledger_id(checkpoint, task, task_id_key())
    proof = prove_membership(read_ledger(place), named, keyed=checkpoint.has_keyed_ids)
    if output is not None:
        write_atomically(output, canonical_json(proof))
    values = {"model": folder, "output": None if output is None else str(output), **proof}
    proving = same_command("--output", "proof.json")
    then = [proving if output is None else command_line("check", output, "--ledger", folder)]
    emit(as_json, values, lambda: _proof_text(values), then=then)


def _proof_text(values: dict[str, Any]) -> str:
    where = f"Proof: {values['output']}" if values["output"] else "Write the proof with --output FILE."
    return "\n".join(
        [
            f"{values['model']}: {values['task']} is {'merged' if values['is_merged'] else 'not merged'}, one of "
            f"{values['tasks']['count']} tasks"
            if values["is_merged"]
            else f"{values['model']}: {values['task']} is not among the {values['tasks']['count']} merged tasks",
            f"ledger {values['ledger_digest']}",
            where,
        ]
    )


def check(
    proof: Annotated[Path, typer.Argument(metavar="FILE", help="Proof that clamu prove wrote.", show_default=False)],
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            metavar="DIGEST",
            help="The ledger's digest from a source that you trust; or the folder or Hub id of the model.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a proof of clamu prove: whether a task is merged, or is not. Exit 1 if the proof shows nothing."""
    from hf_clamu.checkpoint.membership.proof import check_membership
    from hf_clamu.storage import read_json

    if not proof.is_file():
        raise RecipeError(f"There is no file {proof}. Give the proof that clamu prove --output wrote.")
    expected = None if ledger is None else _digest(ledger)
    reason = None
    try:
        content = read_json(proof, _MOST_BYTES, may_link=True)
        is_merged = check_membership(content, expected)
    except CheckpointFormatError as error:
        reason = str(error)
    except ValueError as error:
        reason = f"The proof shows nothing: it is damaged ({error}). Ask for one that `clamu prove` makes."
    if reason is not None:
        emit(as_json, {"proof": str(proof), "is_sound": False, "reason": reason}, lambda: f"{proof}: {reason}")
        raise typer.Exit(1)
    values = {
        "proof": str(proof),
        "is_sound": True,
        "task": content["task"],
        "is_merged": is_merged,
        "ledger_digest": content["ledger_digest"],
        "is_compared": expected is not None,
    }
    emit(as_json, values, lambda: _checked_text(values), quiet=[values["task"]])


def _digest(ledger: str) -> str:
    from hf_clamu.checkpoint.ledger import read_ledger
    from hf_clamu.hub.pull import resolve_folder

    is_hexadecimal = bool(ledger) and set(ledger.lower()) <= set("0123456789abcdef")
    if is_hexadecimal and len(ledger) == 64:
        return ledger.lower()
    if is_hexadecimal and not Path(ledger).is_dir():
        raise RecipeError(f"A ledger's digest has 64 hexadecimal digits, and --ledger {ledger} has {len(ledger)}.")
    return str(read_ledger(resolve_folder(ledger))["digest"])


def _checked_text(values: dict[str, Any]) -> str:
    said = "merged" if values["is_merged"] else "not merged"
    # The id comes from whoever made the proof, and must not look like a line of this program.
    task = values["task"] if values["task"].isprintable() else repr(values["task"])
    line = f"Task {task} is {said} in the ledger {values['ledger_digest']}."
    if values["is_compared"]:
        return line
    return f"{line}\nCompare this digest with one from a source that you trust (--ledger): anybody can make a ledger."
