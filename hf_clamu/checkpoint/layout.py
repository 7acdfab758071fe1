"""The files of a saved model: one table of their names, and of what becomes of them.

Reader, writer, push and cleaning use this table, so that they agree on which files are ours. A file that it does not
name belongs to the user: it is neither read nor deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from hf_clamu.errors import CheckpointFormatError

__all__ = [
    "ANCHORS_NAME",
    "BASE_FOLDER",
    "CARD_NAME",
    "CONFIG_NAME",
    "DATA_SUFFIXES",
    "DELTA_INDEX_NAME",
    "DELTA_NAME",
    "FRESH_NAME",
    "GENERATION_CONFIG_NAME",
    "LEDGER_NAME",
    "LINEAR_DIGESTS_NAME",
    "MASK_CONFIG_NAME",
    "MASK_NAME",
    "SIGNATURE_NAME",
    "TABLE",
    "TASK_MASKS_FOLDER",
    "VECTORS_NAME",
    "WEIGHTS_INDEX_NAME",
    "WEIGHTS_NAME",
    "FileRule",
    "delta_name",
    "files_of",
    "is_ours",
    "is_processor_file",
    "is_signature",
    "mask_folder",
    "refuse_unlisted",
    "require_data_names",
    "rule_of",
    "task_mask_name",
]

CONFIG_NAME = "config.json"
LEDGER_NAME = "ledger.json"
CARD_NAME = "README.md"
# Not the name that transformers looks for: it would take the integers for weights.
DELTA_NAME = "delta.safetensors"
DELTA_INDEX_NAME = "delta.safetensors.index.json"
FRESH_NAME = "base_init.safetensors"
VECTORS_NAME = "features.safetensors"
ANCHORS_NAME = "anchors.safetensors"
LINEAR_DIGESTS_NAME = "linear_digests.safetensors"
MASKS_FOLDER = "masks"
TASK_MASKS_FOLDER = "task_masks"
BASE_FOLDER = "base_model"
MASK_CONFIG_NAME = "adapter_config.json"
MASK_NAME = "adapter_model.safetensors"
# Of a plain checkpoint of transformers, such as the embedded base model; in format 1 the delta had this name.
WEIGHTS_NAME = "model.safetensors"
GENERATION_CONFIG_NAME = "generation_config.json"
# Of a signature inside, as `hf_clamu.signing` has it; that imports torch, which names alone need not.
SIGNATURE_NAME = "model.sig"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"

# What a saved model may consist of and what a pull brings: data that cannot run code. Never *.py, *.bin or *.pkl.
DATA_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".codes", ".spm")

# What tokenizers and image processors of transformers write or look for.
_PROCESSOR_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/[^/]+"),
    *("vocab.json", "vocab.txt", "merges.txt", "dict.txt", "bpe.codes", "emoji.json", "normalizer.json"),
    *("spiece.model", "tokenizer.model", "sentencepiece.model", "sentencepiece.bpe.model", "spm.model"),
    *("spm_char.model", "source.spm", "target.spm", "vocab-src.json", "vocab-tgt.json", "target_vocab.json"),
    *("entity_vocab.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json", "prophetnet.tokenizer"),
    *("tekken.json", "tokenizer.tiktoken", "audio_tokenizer_config.json"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRule:
    """What holds for the files that a pattern names.

    Args:
        names (*tuple* of `str`): regular expressions of the whole name inside the model's folder.
        writer (`str`): what writes them: `"model"` and `"processor"` are part of each saved model, `"base"` only if
            the base model is embedded; `"signer"` adds them to a copy on the Hub; `"nobody"` writes them today.
        is_listed (`bool`): the ledger names each with its digest. A file that exists and is not listed is refused: it
            would be read as a part of the model.
        is_ours (`bool`): it is deleted when another model takes its place, here and on the Hub.
    """

    names: tuple[str, ...]
    writer: Literal["model", "processor", "base", "signer", "nobody"]
    is_listed: bool = True
    is_ours: bool = True

    def matches(self, name: str) -> bool:
        """Whether a name inside the folder is one of these."""
        return any(re.fullmatch(pattern, name) for pattern in self.names)


def _plain(*names: str) -> tuple[str, ...]:
    return tuple(map(re.escape, names))


def _shards(stem: str) -> str:
    return rf"{stem}-\d+-of-\d+\.safetensors"


_SHARDS = _shards("model")
_INDEX = re.escape(WEIGHTS_INDEX_NAME)

# The first row that matches a name decides.
TABLE: tuple[FileRule, ...] = (
    # `verify` compares the card, and people edit it; the ledger cannot list itself.
    FileRule(names=_plain(CARD_NAME, LEDGER_NAME), writer="model", is_listed=False),
    FileRule(names=_plain(CONFIG_NAME, DELTA_NAME, FRESH_NAME, VECTORS_NAME, ANCHORS_NAME), writer="model"),
    FileRule(names=_plain(LINEAR_DIGESTS_NAME), writer="model"),
    FileRule(names=(_shards("delta"), re.escape(DELTA_INDEX_NAME)), writer="model"),
    # The delta of format 1. Where it is left over in a newer model's folder, transformers would take it for weights.
    FileRule(names=_plain(WEIGHTS_NAME), writer="model"),
    FileRule(names=(rf"{MASKS_FOLDER}/cluster_\d+/adapter_(config\.json|model\.safetensors)",), writer="model"),
    FileRule(names=(rf"{TASK_MASKS_FOLDER}/task_\d+\.safetensors",), writer="model"),
    FileRule(names=tuple(name if "[" in name else re.escape(name) for name in _PROCESSOR_FILES), writer="processor"),
    FileRule(
        names=tuple(
            f"{BASE_FOLDER}/{name}" for name in (r"(generation_)?config\.json", r"model\.safetensors", _SHARDS, _INDEX)
        ),
        writer="base",
    ),
    # Other weights and adapters that transformers' loader would find in the base model's folder.
    FileRule(
        names=(rf"{BASE_FOLDER}/.+\.(json|safetensors|bin|h5|msgpack|ckpt|gguf|pt|pth|py)",),
        writer="nobody",
        is_ours=False,
    ),
    # It signs the ledger, too, so no ledger can list it; here it is beside the folder.
    FileRule(names=_plain(SIGNATURE_NAME), writer="signer", is_listed=False),
    # A plain checkpoint in shards that was here before.
    FileRule(names=(_SHARDS, _INDEX), writer="nobody", is_listed=False),
)

_FOLDERS = (MASKS_FOLDER, TASK_MASKS_FOLDER, BASE_FOLDER, "additional_chat_templates")


def rule_of(name: str) -> FileRule | None:
    """Return the row for a name inside a saved model's folder; `None` for files of the user."""
    return next((rule for rule in TABLE if rule.matches(name)), None)


def is_ours(name: str) -> bool:
    """Whether a file is deleted when another model replaces the one that it belongs to."""
    rule = rule_of(name)
    return rule is not None and rule.is_ours


def is_processor_file(name: str) -> bool:
    """Whether a file belongs to a tokenizer or image processor."""
    rule = rule_of(name)
    return rule is not None and rule.writer == "processor"


def is_signature(name: str) -> bool:
    """Whether a file signs the others, and is no part of what a build gives."""
    rule = rule_of(name)
    return rule is not None and rule.writer == "signer"


def delta_name(format_version: object) -> str:
    """Return the name of the merged delta in a saved model of a format version."""
    return WEIGHTS_NAME if format_version == 1 else DELTA_NAME


def mask_folder(cluster: int) -> str:
    """Return the folder of a cluster's mask adapter inside a saved model."""
    return f"{MASKS_FOLDER}/cluster_{cluster:03d}"


def task_mask_name(index: int) -> str:
    """Return the file of a task's mask inside a saved model, by the task's index in the order of the ids."""
    return f"{TASK_MASKS_FOLDER}/task_{index:03d}.safetensors"


def files_of(folder: Path, *, of_others: bool = True) -> list[str]:
    """Return the names of the files in a folder, sorted.

    Args:
        folder (`Path`): of a saved model.
        of_others (`bool`): look into folders that no row of the table names, too.
    """
    listed = []
    for path in folder.iterdir():
        if path.is_file():
            listed.append(path.name)
        elif of_others or path.name in _FOLDERS:
            # Our folders even where they are links: loaders would follow them.
            listed += [
                (Path(walked) / name).relative_to(folder).as_posix()
                for walked, _, names in os.walk(path)
                for name in names
                if (Path(walked) / name).is_file()
            ]
    return sorted(listed)


def require_data_names(names: Iterable[object]) -> None:
    """Check the names that a ledger lists.

    Raises:
        CheckpointFormatError: if one leads out of the folder, or is of a kind that no saved model has.
    """
    for name in names:
        path = PurePosixPath(str(name))
        if not isinstance(name, str) or ".." in path.parts or path.is_absolute() or "\\" in name or "\0" in name:
            raise CheckpointFormatError(f"{LEDGER_NAME} names {name!r}, which is outside the folder.")
        rule = rule_of(name)
        is_known = rule is not None and rule.is_listed and rule.writer != "nobody"
        # A processor may have names of its own, at the top.
        if not is_known and not (rule is None and str(path) == path.name == name and path.suffix in DATA_SUFFIXES):
            raise CheckpointFormatError(f"{LEDGER_NAME} names {name!r}, which is no file of a saved model.")


def refuse_unlisted(folder: Path, listed: Iterable[str]) -> None:
    """Check that a folder has no file that would be read as a part of the model but is not listed.

    Raises:
        CheckpointFormatError: naming the file.
    """
    known = set(listed)
    for name in files_of(folder, of_others=False):
        rule = rule_of(name)
        if rule is not None and rule.is_listed and name not in known:
            raise CheckpointFormatError(
                f"{folder / name} is no part of this model (its ledger does not list it), but would be read as one. "
                "Move it out of the folder, or take an undamaged copy."
            )
