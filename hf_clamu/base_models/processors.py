"""Tokenizers and image processors: loading them without running their code, and writing them byte for byte the same.

A model without one gives `None`; one that cannot be loaded raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_clamu.base_models.foreign import foreign_files, require_no_pointers
from hf_clamu.checkpoint.processor_files import normalized_bytes
from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.tasks import traits_of

__all__ = ["load_processor", "save_processor", "saved_processor"]

_PROCESSOR_CONFIGS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
# A repository that has one of these has a processor.
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
_TEXT_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "tekken.json"),
    *("vocab.txt", "vocab.json", "vocab.bpe", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def load_processor(
    name: str, kind: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> Any:
    """Load the tokenizer or image processor of a model; `None` if it has none.

    Args:
        name (`str`): a Hub id or a folder.
        kind (`str`): of the tasks.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str`, *optional*): for private repos.
        cache_dir (`str`, *optional*): of huggingface_hub.

    Raises:
        IncompatibleBaseError: if there is one that cannot be loaded, needs code of its own, or knows no word.
    """
    import transformers

    is_image = traits_of(kind).reads == "image"
    auto = transformers.AutoImageProcessor if is_image else transformers.AutoTokenizer
    source = {"revision": revision or "main", "token": token, "cache_dir": cache_dir}
    what = "image processor" if is_image else "tokenizer"

    def refused(cause: str) -> IncompatibleBaseError:
        return IncompatibleBaseError(
            f"The {what} of {name!r} cannot be loaded: {cause} Mend its files, or give another {what} "
            "(processing_class=; in a recipe: tokenizer)."
        )

    if Path(name).is_dir():
        require_no_pointers(Path(name), refused)
    try:
        with foreign_files(refused):
            found = auto.from_pretrained(name, trust_remote_code=False, **source)
    except IncompatibleBaseError:
        # Asked only now: on the Hub each file is a request.
        if _has_files(name, kind, **source):
            raise
        return None
    if not is_image and _knows_no_word(found):
        # What transformers makes of a folder without these files, for some kinds of models.
        if _has_files(name, kind, **source):
            raise refused(f"it has {len(found)} tokens and knows no word.")
        return None
    return found


def saved_processor(folder: Path, kind: str) -> Any:
    """Return the tokenizer or image processor that was saved in a folder, if one was.

    Args:
        folder (`Path`): of a checkpoint.
        kind (`str`): of the tasks.

    Raises:
        IncompatibleBaseError: if it cannot be loaded.
    """
    return load_processor(str(folder), kind) if _has_files(str(folder), kind) else None


def _has_files(name: str, kind: str, **source: Any) -> bool:
    """Whether a folder or repository has files of a tokenizer or image processor."""
    from transformers.utils.hub import cached_file

    names = _IMAGE_FILES if traits_of(kind).reads == "image" else _TEXT_FILES
    if Path(name).is_dir():
        return any((Path(name) / file).exists() for file in names)
    try:
        return any(cached_file(name, file, _raise_exceptions_for_missing_entries=False, **source) for file in names)
    except (OSError, ValueError):
        return False  # no such repository


def _knows_no_word(tokenizer: Any) -> bool:
    # Tokenizers of characters or bytes need no vocabulary, and list one nevertheless.
    return set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens)


def save_processor(processor: Any, folder: Path) -> None:
    """Write a tokenizer or image processor; the bytes do not depend on how it was loaded or last called.

    Raises:
        OSError: if it cannot be written.
    """
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        # A fast tokenizer keeps the truncation and padding of its last call and would write them into tokenizer.json;
        # its next call sets them again.
        backend.no_truncation()
        backend.no_padding()
    try:
        processor.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        # As tokenizers says that a disk is full.
        raise OSError(f"The processor cannot be written to {folder}: {error}") from error
    for path in (folder / name for name in _PROCESSOR_CONFIGS):
        if path.exists():
            path.write_bytes(normalized_bytes(path))
