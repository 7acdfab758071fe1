"""The program `clamu`: its commands, its arguments and its exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from hf_clamu.cli import interruption
from hf_clamu.cli.commands.add import add, update
from hf_clamu.cli.commands.demo import demo
from hf_clamu.cli.commands.desk.desk import desk
from hf_clamu.cli.commands.desk.queue import queue
from hf_clamu.cli.commands.desk.report import report
from hf_clamu.cli.commands.evaluate import evaluate
from hf_clamu.cli.commands.export import export
from hf_clamu.cli.commands.hub import erase, push
from hf_clamu.cli.commands.init import init
from hf_clamu.cli.commands.inspection import info, verify
from hf_clamu.cli.commands.merge import merge
from hf_clamu.cli.commands.predict import predict
from hf_clamu.cli.commands.proofs.attack import attack
from hf_clamu.cli.commands.proofs.audit import audit
from hf_clamu.cli.commands.proofs.prove import check, prove
from hf_clamu.cli.commands.proofs.receipts import receipts
from hf_clamu.cli.commands.proofs.sign import sign
from hf_clamu.cli.commands.train import plan, train
from hf_clamu.cli.commands.unmerge import unmerge
from hf_clamu.cli.faults import INTERRUPTED, refusal
from hf_clamu.cli.output import emit_error, log_as_notes
from hf_clamu.cli.terminal.bars import stop_bars
from hf_clamu.cli.terminal.completion import is_completing
from hf_clamu.cli.terminal.format_option import add_formats
from hf_clamu.cli.terminal.formats import asked_for, use_format
from hf_clamu.cli.terminal.program import note_arguments, program_name
from hf_clamu.version import __version__

__all__ = ["app", "main"]

# In the order of `clamu --help`.
_COMMANDS: tuple[Callable[..., None], ...] = (
    demo,
    init,
    info,
    predict,
    evaluate,
    export,
    verify,
    audit,
    prove,
    check,
    attack,
    unmerge,
    add,
    update,
    train,
    plan,
    merge,
    push,
    erase,
    sign,
    receipts,
    report,
    desk,
)

app = typer.Typer(
    name="clamu",
    help="Exact unlearning of finetuning data by model merging.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted and not is_completing():
        sys.stdout.write(f"clamu {__version__}\n")
        raise typer.Exit


def _install_extension(wanted: bool) -> None:
    if wanted and not is_completing():
        from hf_clamu.cli.terminal.program import install_extension

        program = install_extension()
        sys.stdout.write(f"hf clamu runs {program} now. To undo it: hf extensions remove clamu\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a fault of hf_clamu, as CLAMU_DEBUG=1 does.")
    ] = False,
    extension: Annotated[
        bool,
        typer.Option(
            "--install-extension",
            callback=_install_extension,
            is_eager=True,
            help="Let the Hub's command line run this as hf clamu, and exit.",
        ),
    ] = False,
) -> None:
    """Exact unlearning of finetuning data by model merging."""


for _command in _COMMANDS:
    # The list of commands shows the whole first paragraph, which the parser would cut off.
    app.command(short_help=(_command.__doc__ or "").strip().split("\n\n")[0])(_command)
app.add_typer(queue, short_help=queue.info.help)
add_formats(app)


def _fill_closed_streams() -> None:
    """Open what a shell closed (`>&-`): the first file that a command writes would get its number and output."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (*sequence* of `str`, *optional*): by default the process's own arguments.

    Returns:
        `int`: 0 on success; 1 if exactness could not be proven, or a task would lose more than `--max-drop`; 2 on bad
        usage or input; 3 on a fault of hf_clamu; 130 when interrupted.
    """
    _fill_closed_streams()
    arguments, debug = _understood(list(sys.argv[1:] if argv is None else argv))
    note_arguments(arguments)
    interruption.reset()
    try:
        try:
            with log_as_notes():
                code = app(args=arguments, prog_name=program_name(), standalone_mode=False)
        finally:
            stop_bars()
    except KeyboardInterrupt:  # before typer ran the command; from then on it returns the same code
        code = INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BrokenPipeError:  # the reader of the output, such as `head`, is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except BaseException as error:  # a panic of a library in Rust is no Exception
        code, kind, message = refusal(error, show_traceback=debug)
        emit_error(False, kind, interruption.error_message(message))
        return code
    if code == INTERRUPTED:
        emit_error(False, "KeyboardInterrupt", interruption.interruption_message(arguments[0] if arguments else ""))
    return code if isinstance(code, int) else 0


def _understood(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments as the parser takes them, and whether `--debug` is among them.

    Typer takes `--debug`, `--json` and `--format` at one place only, and a refusal of the parser itself has to obey
    them, too.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    use_format(asked_for(arguments[:end]))
    debug = "--debug" in arguments[:end]
    arguments = [word for index, word in enumerate(arguments) if word != "--debug" or index > end]
    if not arguments or arguments == ["help"]:
        return ["--help"], debug
    return ([*arguments[1:2], "--help"] if arguments[0] == "help" else arguments), debug
