"""Where other libraries read foreign files: whatever they raise becomes one sentence of ours.

They raise nearly everything: `OSError`, `ValueError`, `KeyError`, `ImportError`, `RecursionError`, `UnpicklingError`,
`SafetensorError`, and tokenizers a bare `Exception`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from hf_clamu.errors import ClamuError, first_line

__all__ = ["foreign_files", "require_no_pointers"]

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024


@contextmanager
def foreign_files(explain: Callable[[str], ClamuError]) -> Iterator[None]:
    """Turn errors of other libraries into one of ours; failed assertions and a lack of memory stay what they are.

    Args:
        explain (*callable*): makes it from the cause, a sentence of its own with its way out, if one is known.
    """
    try:
        yield
    except (AssertionError, ClamuError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise explain(_cause(error)) from error


def _cause(error: Exception) -> str:
    text = first_line(error)
    if isinstance(error, SafetensorError):
        return f"its safetensors file is damaged or incomplete ({text}). Take an undamaged copy."
    causes = (error, error.__cause__, error.__context__)
    if any(type(one).__name__ == "UnpicklingError" for one in causes):  # its module is not for us to import
        return (
            "its weights are a pickle that is damaged or holds more than tensors, and no code of it is run. Save "
            "them as safetensors."
        )
    if isinstance(error, RecursionError):
        return "a file of it is nested too deeply to be read. Take an undamaged copy."
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code of its own (auto_map), which is never run here. Take a model or processor of a kind "
            "that transformers itself has."
        )
    return text if text.endswith((".", "?", "!")) else f"{text}."


def require_no_pointers(folder: Path, explain: Callable[[str], ClamuError]) -> None:
    """Check that a cloned repository brought its large files, and not only their pointers.

    Args:
        folder (`Path`): of a model.
        explain (*callable*): makes the error from the cause.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and 0 < path.stat().st_size < _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
            raise explain(
                f"{path.name} is a pointer of Git LFS and not the file. Run `git lfs pull` in its folder, or load "
                "the model by its Hub id."
            )
