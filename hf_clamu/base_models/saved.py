"""The base model of a saved model: loaded from where it is named, or copied from a live one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import restore_adapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.casting import cast_weights
from hf_clamu.base_models.config import require_no_imports
from hf_clamu.base_models.foreign import foreign_files
from hf_clamu.base_models.identity import base_digest, base_weights, load_architecture
from hf_clamu.base_models.library_calls import making_models, suppress_load_report
from hf_clamu.base_models.processors import load_processor
from hf_clamu.base_models.quantization.modules import adopt_layers, loading_options, make_ready, quantization_of
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.checkpoint.files.unchanged import FileStamps
from hf_clamu.checkpoint.layout import (
    BASE_FOLDER,
    CARD_NAME,
    CONFIG_NAME,
    DATA_SUFFIXES,
    LEDGER_NAME,
    is_processor_file,
)
from hf_clamu.checkpoint.processor_files import normalized_bytes
from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, WeightsChangedError
from hf_clamu.exact import digest_json, digest_tensors, value_digests
from hf_clamu.exact.threads import SizedThreadPool
from hf_clamu.hub.pull import require_reachable
from hf_clamu.training import seeded

# Bytes; vector instructions ask for no more.
_ALIGNMENT = 64

__all__ = ["clone_base", "load_base_of", "require_base", "saved_processor"]


def load_base_of(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    attn_implementation: str | None = None,
    token: str | bool | None = None,
    cache_dir: Any = None,
    local_files_only: bool = False,
    strict: bool = False,
) -> tuple[Any, dict[str, bytes]]:
    """Load the base model that a saved model names, and prove that it is the one that was merged into.

    Args:
        folder (`Path`): the saved model's folder.
        checkpoint (`Checkpoint`): what it holds.
        attn_implementation (`str`, *optional*): of the base architecture.
        token (`str` or `bool`, *optional*): for a private base model.
        cache_dir (*optional*): of huggingface_hub.
        local_files_only (`bool`): do not look at the Hub.
        strict (`bool`): hash the weights, also if their files are proven to hold them or are unchanged.

    Returns:
        `transformers.PreTrainedModel`, *dict* of `str` to `bytes`: the model, holding the base weights, fresh ones
        included; and the SHA-256 of the values of its parameters, where they are known.

    Raises:
        HubError: if it is not in the cache, and the Hub cannot be reached.
        IncompatibleBaseError: if it cannot be loaded or has other weights.
    """
    reference = checkpoint.base
    name = str(folder / BASE_FOLDER) if reference.embedded else reference.name_or_path
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if reference.embedded:
        options["use_safetensors"] = True  # as it was written; a pickle there is not ours
    else:
        access = {"revision": reference.revision, "token": token, "cache_dir": cache_dir}
        options |= {**access, "local_files_only": local_files_only}
        if not local_files_only:
            require_reachable(name, **access)
    # What is quantised at load is in no file.
    is_in_files = not reference.embedded and reference.quantization_config is None
    stamps = _stamps(name, reference.revision, cache_dir) if is_in_files and not strict else None
    model = _load_recorded(folder, checkpoint, name, options)
    _copy_mapped(model)
    weights = base_weights(model)
    contents = _value_digests_of(weights, checkpoint, stamps)
    if digest_tensors(weights, contents) != reference.digest:
        raise IncompatibleBaseError(
            f"The base model {name!r} (revision {reference.revision}) has other weights than the one that was "
            "merged into: its digest differs. Restore the recorded revision."
        )
    space = PeftSpace.of_checkpoint(checkpoint)
    if space is not None:
        restore_adapter(space, model, checkpoint.fresh)
        contents = {}
    return model, dict(contents)


def _stamps(name: str, revision: str | None, cache_dir: Any) -> FileStamps | None:
    """Return stamps of the files that a base model on the Hub is loaded from; `None` before it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, CONFIG_NAME, cache_dir=cache_dir, revision=revision)
    folder = Path(found).parent if isinstance(found, str) else Path(name)
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return FileStamps.of(paths) if any(path.suffix in (".safetensors", ".bin") for path in paths) else None


def _value_digests_of(
    weights: Mapping[str, torch.Tensor], checkpoint: Checkpoint, stamps: FileStamps | None
) -> dict[str, bytes]:
    """Return the `value_digest` of each weight; those that come from files of known content are not hashed.

    Args:
        weights (*mapping* of `str` to `torch.Tensor`): see `base_weights`.
        checkpoint (`Checkpoint`): the saved model, which may say what the files of its base model hold.
        stamps (`FileStamps`, *optional*): of the files of a base model elsewhere, taken before it was loaded.
    """
    known = None if checkpoint.files is None else checkpoint.files.base_values
    config = digest_json(checkpoint.config.base_config)
    what = (checkpoint.config.architecture, checkpoint.base.dtype, config, tuple(sorted(checkpoint.fresh)))
    if stamps is not None and stamps.hold():
        known = stamps.recall(what)
    if known is not None:
        fresh = value_digests({name: weights[name] for name in checkpoint.fresh if name in weights})
        values = {**known, **fresh}
        # The digest covers names, types and shapes as well: another release of transformers may load other ones.
        if values.keys() == weights.keys() and digest_tensors(weights, values) == checkpoint.base.digest:
            return values
    values = value_digests(weights)
    if stamps is not None and digest_tensors(weights, values) == checkpoint.base.digest:
        stamps.remember(what, values)
    return values


def _load_recorded(folder: Path, checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> Any:
    """Load a base model with its recorded configuration, and give it the parameters that its checkpoint lacks."""
    architecture, values = load_architecture(checkpoint.config.architecture), checkpoint.base_config()
    where = f"The base model's configuration in {folder / CONFIG_NAME}"
    space = PeftSpace.of_checkpoint(checkpoint)
    is_live = space is not None and space.is_live
    require_no_imports(values, architecture.config_class, where, may_be_quantized=is_live)
    quantization, options = _quantization_of(checkpoint, where), dict(options)
    if quantization is not None:
        is_stored = "quantization_config" in values
        options |= loading_options(quantization, is_stored=is_stored)
    with foreign_files(partial(_no_base_config, folder)):
        base_config = architecture.config_class.from_dict(values)
    with foreign_files(lambda cause: IncompatibleBaseError(f"The base model {name!r} could not be loaded: {cause}")):
        with suppress_load_report(), making_models():
            model, info = architecture.from_pretrained(
                name,
                config=base_config,
                dtype=checkpoint.base.torch_dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=bool(checkpoint.fresh),
                trust_remote_code=False,
                **options,
            )
    if quantization is not None:
        make_ready(model, quantization)
    restore_generation(model, checkpoint.config)
    missing = set(info["missing_keys"]) - set(checkpoint.fresh)
    if missing:
        raise IncompatibleBaseError(f"The base model {name!r} lacks the parameters {sorted(missing)[:5]}.")
    with torch.no_grad():
        own = model.state_dict()
        for key, value in checkpoint.fresh.items():
            if key in own:
                own[key].copy_(value)
    return model


def _quantization_of(checkpoint: Checkpoint, where: str) -> Quantization | None:
    """Return how a recorded base model is quantised: at each load, or in its files."""
    stored = checkpoint.base_config().get("quantization_config")
    return Quantization.recorded(checkpoint.base.quantization_config or stored, where)


def _no_base_config(folder: Path, cause: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"The base model's configuration in {folder / CONFIG_NAME} cannot be used: {cause} Take an undamaged copy."
    )


def require_base(folder: Path, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Prove that a base model that was just written loads as the one that was merged into.

    Returns:
        *dict* of `str` to `bytes`: the SHA-256 of the values of each of its weights.

    Raises:
        WeightsChangedError: if it does not.
    """
    reference = checkpoint.base
    architecture = load_architecture(checkpoint.config.architecture)
    base_config = architecture.config_class.from_dict(checkpoint.base_config())
    quantization = _quantization_of(checkpoint, "The base model")
    with seeded(0), making_models():  # the caller's generators must not move
        model, info = architecture.from_pretrained(
            folder,
            config=base_config,
            dtype=reference.torch_dtype,
            output_loading_info=True,
            use_safetensors=True,
            **loading_options(quantization, is_stored=True),
        )
    if quantization is not None:
        make_ready(model, quantization)
    weights = base_weights(model)
    values = value_digests(weights)
    if info["missing_keys"] or digest_tensors(weights, values) != reference.digest:
        raise WeightsChangedError(
            "The base model's weights are no longer those that were merged into (something else changed them), so "
            "nothing was saved: it could not be loaded again. Load the model with ClamuModel.from_pretrained."
        )
    return values


def _copy_mapped(model: Any) -> None:
    """Copy weights that are mapped from a file into memory: switches write to them, and page by page that is slow.

    They get addresses with the same remainder: products of matrices may take another path for memory with another
    alignment, and answers must be those of a plain checkpoint to the last bit.
    """
    with SizedThreadPool() as pool:
        copies = {}
        for parameter in model.parameters():
            weights, size = parameter.data, parameter.element_size()
            if not weights.is_floating_point():
                continue  # quantised: nothing writes to them, and their layers have other names for the same memory
            if weights.device.type == "cpu" and weights.is_contiguous() and not weights.data_ptr() % size:
                copies[parameter] = pool.submit(weights.nbytes, _copied, weights)
        for parameter, copied in copies.items():
            parameter.data = copied()


def _copied(weights: torch.Tensor) -> torch.Tensor:
    size = weights.element_size()
    buffer = torch.empty(weights.numel() + _ALIGNMENT // size, dtype=weights.dtype)
    start = (weights.data_ptr() - buffer.data_ptr()) % _ALIGNMENT // size
    return buffer[start : start + weights.numel()].view(weights.shape).copy_(weights)


def clone_base(live: Any, checkpoint: Checkpoint, *, is_proven: bool = False) -> Any:
    """Return a new base model with the weights of a live one, free of hooks and of later settings.

    Args:
        live (`transformers.PreTrainedModel`): holding the base weights.
        checkpoint (`Checkpoint`): what is merged into it.
        is_proven (`bool`): its digest was compared when it was loaded, and nobody else had it since. Otherwise it is
            compared again: a write through `.data` leaves no trace in a parameter's version.

    Raises:
        WeightsChangedError: if the live model has other base weights than those that were merged into.
    """
    config = checkpoint.config
    architecture = load_architecture(config.architecture)
    base_config = architecture.config_class.from_dict(checkpoint.base_config())
    space, is_quantized = PeftSpace.of_checkpoint(checkpoint), quantization_of(live) is not None
    empty = torch.device("meta") if is_quantized else nullcontext()
    with seeded(0), making_models(), empty:  # its random weights are replaced; the caller's generators must not move
        clone = architecture._from_config(base_config)
    restore_generation(clone, config)
    if is_quantized:  # and the base weights are selected, so that the adapter has its first values
        adopt_layers(clone, live, copies=True)
    else:
        cast_weights(clone, live.dtype)
    adapter = frozenset[str]() if space is None else restore_adapter(space, clone, checkpoint.fresh)
    if not is_quantized:
        clone.load_state_dict(live.state_dict())
    if not is_proven and base_digest(clone, adapter) != checkpoint.base.digest:
        raise WeightsChangedError(
            "The live model no longer has the base weights that were merged into (another dtype, or frozen "
            "weights were changed). Load it again with ClamuModel.from_pretrained."
        )
    # What the caller of the build had frozen takes no part in requests either.
    for name, parameter in clone.named_parameters():
        parameter.requires_grad_(name in checkpoint.state.delta)
    return clone


def restore_generation(model: Any, config: ClamuConfig) -> None:
    """Give a model the recorded defaults of `generate`."""
    from transformers import GenerationConfig

    if config.generation_config is not None:
        model.generation_config = GenerationConfig.from_dict(dict(config.generation_config))


def saved_processor(folder: Path, checkpoint: Checkpoint) -> Any:
    """Load the tokenizer or image processor of a saved model, from files that its ledger lists; `None` if it has none.

    Args:
        folder (`Path`): of the saved model.
        checkpoint (`Checkpoint`): what `read_checkpoint` has read from it.

    Raises:
        CheckpointFormatError: if the files are there and nothing can be made of them.
    """
    if checkpoint.files is None:
        return None
    listed, rewritten = checkpoint.files.entries, checkpoint.files.rewritten
    if not any(map(is_processor_file, listed)):
        return None
    kind = checkpoint.task_spec.kind
    # The loader must not see files beside it that were not written with the model.
    others = [
        path.name
        for path in folder.iterdir()
        if path.suffix in (*DATA_SUFFIXES, ".py") and path.name not in (*listed, LEDGER_NAME, CARD_NAME)
    ]
    if not others and not rewritten:
        return _processor_at(folder, folder, kind)
    # Its own save_pretrained writes what its last call had set, which would come back as settings.
    with tempfile.TemporaryDirectory(prefix="clamu-processor-") as scratch:
        for name in listed:
            path, copied = folder / name, Path(scratch) / name
            if is_processor_file(name) or ("/" not in name and path.suffix != ".safetensors"):
                copied.parent.mkdir(exist_ok=True)
                copied.write_bytes(normalized_bytes(path) if name in rewritten else path.read_bytes())
        return _processor_at(Path(scratch), folder, kind)


def _processor_at(source: Path, folder: Path, kind: str) -> Any:
    try:
        processor = load_processor(str(source), kind)
    except IncompatibleBaseError as error:
        raise CheckpointFormatError(
            f"The tokenizer or image processor in {folder} cannot be loaded "
            f"({' '.join(str(error.__cause__ or error).split())[:300]}). Take an undamaged copy, or install what it "
            "needs."
        ) from error
    if processor is None:
        raise CheckpointFormatError(
            f"{folder} holds the files of a tokenizer or image processor, and the installed transformers makes none "
            "of them. Take an undamaged copy, or install what it needs."
        )
    return processor
