"""How this program was started, and its place among the extensions of `hf`, the Hub's own command line.

`hf clamu ...` runs the program `hf-clamu` of a folder of its own, in the user's home, and hands all arguments on. By
itself `hf` makes such folders from repositories on GitHub alone; `install_extension` makes one for what is installed.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_clamu.errors import RecipeError

__all__ = ["command_line", "install_extension", "note_arguments", "program_name", "same_command"]

_NAME = "hf-clamu"
_FOLDER = Path("~/.local/share/hf/extensions") / _NAME
_FIRST_RELEASE = (1, 5)  # of huggingface_hub with extensions
# GitHub has no such owner: names there have no underscore. `hf extensions update` finds nothing to install over this.
_OWNER = "installed_with_pip"

_arguments: list[str] = []


def program_name() -> str:
    """Return how this program is called: `clamu`, or `hf clamu`, or `hf-clamu` where `hf` does not know it."""
    if Path(sys.argv[0]).stem != _NAME:
        return "clamu"
    return "hf clamu" if (_FOLDER.expanduser() / "manifest.json").is_file() else _NAME


def command_line(*words: str | Path) -> str:
    """Return a command of this program that works when it is pasted.

    Args:
        words (`str` or `Path`): the command and its arguments, unquoted.
    """
    return " ".join([program_name(), shlex.join(map(str, words))])


def note_arguments(arguments: Sequence[str]) -> None:
    """Note what this program was asked for."""
    _arguments[:] = arguments


def same_command(*more: str, without: str = "") -> str:
    """Return the command that is running, with more options or without one."""
    return command_line(*(word for word in _arguments if word != without), *more)


def install_extension() -> Path:
    """Let `hf clamu` run the `hf-clamu` that is installed beside this program.

    Returns:
        `Path`: the program that `hf` will run.

    Raises:
        RecipeError: if `hf` is too old, there is no such program, or `hf clamu` is somebody else's.
    """
    import shutil
    from importlib.metadata import version  # takes as long as the rest of `clamu --help`

    found = version("huggingface_hub")
    if tuple(map(int, found.split(".")[:2])) < _FIRST_RELEASE:
        raise RecipeError(
            f"hf of huggingface_hub {found} has no extensions. Install huggingface_hub 1.5 or newer, or call clamu."
        )
    source = _installed_program()
    folder = _FOLDER.expanduser()
    manifest = folder / "manifest.json"
    _require_own(manifest)
    program = folder / source.name
    folder.mkdir(parents=True, exist_ok=True)
    if source.resolve() != program.resolve():
        shutil.copy2(source, program)  # it starts the Python that it was installed for
    manifest.write_text(json.dumps(_manifest(program), indent=2, sort_keys=True), encoding="utf-8")
    return program


def _installed_program() -> Path:
    name = f"{_NAME}.exe" if os.name == "nt" else _NAME
    for folder in (Path(sys.argv[0]).parent, Path(sys.executable).parent):
        if (folder / name).is_file():
            return folder / name
    raise RecipeError(f"There is no {name} beside {sys.executable}. Install hf_clamu with pip, then repeat this.")


def _require_own(manifest: Path) -> None:
    """Refuse to replace an extension of the same name that came from elsewhere."""
    if not manifest.is_file():
        return
    try:
        owner = json.loads(manifest.read_text(encoding="utf-8")).get("owner")
    except (OSError, ValueError, AttributeError):
        owner = "an unknown place"
    if owner != _OWNER:
        raise RecipeError(
            f"hf clamu is installed already, from {owner}. To use what is installed here, first: hf extensions remove "
            "clamu."
        )


def _manifest(program: Path) -> dict[str, str]:
    """Return what huggingface_hub 1.5 to 2.4 read of an extension: these fields and no others."""
    from datetime import datetime, timezone

    return {
        "owner": _OWNER,
        "repo": _NAME,
        "repo_id": f"{_OWNER}/{_NAME}",
        "short_name": _NAME.removeprefix("hf-"),
        "executable_name": program.name,
        "executable_path": str(program),
        "type": "binary",
        "installed_at": datetime.now(timezone.utc).isoformat(),
        "source": str(Path(sys.executable).parent),
        "description": "Exact unlearning of finetuning data by model merging",
    }
