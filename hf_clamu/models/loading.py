"""Loading what `save_pretrained` wrote: the files of a folder or a Hub repo, checked, and its base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.quantization.modules import quantization_of
from hf_clamu.base_models.saved import load_base_of, saved_processor
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.files.integrity import file_digest
from hf_clamu.checkpoint.reader import opened_checkpoint
from hf_clamu.hub.pull import download, is_repo_id
from hf_clamu.models.state import ModelContext, Origin
from hf_clamu.operations.lifecycle.target import receipts_of
from hf_clamu.operations.signed.checking import require_trusted
from hf_clamu.signing import KeySource, load_public_keys

__all__ = ["HubOptions", "LoadedModel", "check_loading_options", "opened_model", "require_castable", "serving_dtype"]

# What transformers' Auto classes and pipelines hand to every `from_pretrained`.
_IGNORED_OPTIONS = (
    *("config", "trust_remote_code", "code_revision", "adapter_kwargs", "use_safetensors", "low_cpu_mem_usage"),
    *("proxies", "tokenizer", "commit_hash"),
)


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How files are fetched from the Hub, see `ClamuModel.from_pretrained`.

    Args:
        revision (`str`, *optional*): branch, tag or commit.
        token (`str` or `bool`, *optional*): for private repos.
        cache_dir (`str` or `Path`, *optional*): of huggingface_hub.
        offline (`bool`): do not look at the Hub.
        forced (`bool`): fetch files although the cache holds them.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: Any = None
    offline: bool = False
    forced: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A saved model that was read, before its weights are switched.

    Args:
        base (`transformers.PreTrainedModel`): holding the base weights.
        checkpoint (`Checkpoint`): what is merged.
        context (`ModelContext`): what goes with it.
        digests (*mapping* of `str` to `bytes`): the SHA-256 of the parameters' values.
    """

    base: Any
    checkpoint: Checkpoint
    context: ModelContext
    digests: Mapping[str, bytes] | None


@contextmanager
def opened_model(
    name_or_path: str,
    options: HubOptions,
    attn_implementation: str | None,
    *,
    task_id_key: str | None,
    strict: bool,
    trusted_keys: Sequence[KeySource] | KeySource | None,
) -> Iterator[LoadedModel]:
    """Read a saved model and load its base model; the last files are compared when a block has switched its weights.

    Args:
        name_or_path (`str`): a folder, or a Hub id.
        options (`HubOptions`): how files are fetched.
        attn_implementation (`str`, *optional*): of the base architecture.
        task_id_key (`str`, *optional*): the key of the ledger's task ids.
        strict (`bool`): see `opened_checkpoint`.
        trusted_keys (*sequence* of `str`, `Path` or `bytes`, *optional*): keys of which one must have signed it.

    Raises:
        CheckpointFormatError: if a file is missing, truncated, tampered with, or of a newer format.
        HubError: if the repo cannot be downloaded.
        IncompatibleBaseError: if the base model is not the one that was merged into.
        RecipeError: if a key cannot be read.
        SignatureError: if the model, or a receipt beside it, is not as a trusted key signed it.
    """
    trusted = () if trusted_keys is None else load_public_keys(trusted_keys)
    shared: dict[str, Any] = {
        "token": options.token,
        "cache_dir": options.cache_dir,
        "local_files_only": options.offline,
    }
    origin = Origin(folder=Path(name_or_path))
    if is_repo_id(name_or_path):
        folder, commit = download(name_or_path, revision=options.revision, force_download=options.forced, **shared)
        revision = options.revision or "main"
        origin = Origin(folder=folder, repo_id=name_or_path, commit=commit, revision=revision, token=options.token)
    # Before anything is read that decides what is loaded. Each file is hashed once for both.
    model = require_trusted(origin.folder, trusted, digest=partial(file_digest, strict=strict)) if trusted else None
    with opened_checkpoint(origin.folder, strict=strict) as checkpoint:
        if model is not None:
            model.require_state(checkpoint)
            model.check_receipts(checkpoint.state_digest, receipts_of(name_or_path), trusted, required=False)
        if checkpoint.files is not None:
            origin = replace(origin, ledgers={origin.folder.resolve(): checkpoint.files.digest})
        base, digests = load_base_of(
            origin.folder, checkpoint, attn_implementation=attn_implementation, strict=strict, **shared
        )
        processor = saved_processor(origin.folder, checkpoint)
        context = ModelContext(processor=processor, origin=origin, task_id_key=task_id_key)
        yield LoadedModel(base=base, checkpoint=checkpoint, context=context, digests=digests)


def check_loading_options(options: dict[str, Any]) -> None:
    """Refuse options that `from_pretrained` does not know; what transformers hands to every model is let through.

    Raises:
        TypeError: if there is an unknown one.
        ValueError: if `subfolder` is given.
    """
    if options.pop("subfolder", None):
        raise ValueError("A saved ClAMU model is a folder or repo of its own: subfolder= cannot be given.")
    unknown = sorted(
        key
        for key, value in options.items()
        if key not in _IGNORED_OPTIONS and not key.startswith("_") and value is not None
    )
    if unknown:
        raise TypeError(f"ClamuModel.from_pretrained does not know the option {unknown[0]!r}.")


def serving_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the type to serve in; `None` is that of the build.

    Raises:
        ValueError: if it is no floating-point type.
    """
    if dtype is None or dtype == "auto":
        return None
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, such as 'bfloat16', got {dtype!r}.")
    return named


def require_castable(base: Any, dtype: torch.dtype | None) -> None:
    """Check that a base model can be served in a type.

    Args:
        base (`transformers.PreTrainedModel`): the base model.
        dtype (`torch.dtype`, *optional*): the type; `None` is that of the build.

    Raises:
        ValueError: if it is quantised and has another.
    """
    quantization = quantization_of(base)
    if quantization is not None and dtype not in (None, base.dtype):
        raise ValueError(
            f"The base model is stored in {quantization.bits} bits beside {base.dtype}, which it was merged in, and "
            f"cannot be served in {dtype}. Leave dtype out."
        )
