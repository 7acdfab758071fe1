"""The base model: loading it, naming it, and proving that it is the one that was merged into."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.casting import cast_weights
from hf_clamu.base_models.config import config_of_mapping, config_of_repository
from hf_clamu.base_models.foreign import foreign_files
from hf_clamu.base_models.in_memory import rebuilt, require_base
from hf_clamu.base_models.labels import labels_of, require_same_labels
from hf_clamu.base_models.making import making_models
from hf_clamu.base_models.peft_space import PeftSpace, plain_name
from hf_clamu.base_models.pretrained import load_pretrained, require_same_positions
from hf_clamu.base_models.processors import load_processor
from hf_clamu.checkpoint.base_reference import BaseReference
from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.exact import digest_tensors
from hf_clamu.tasks import ModelLimits, TaskSpec, traits_of
from hf_clamu.training import derive_seed, seeded

__all__ = [
    "BaseModel",
    "base_digest",
    "base_weights",
    "empty_model",
    "load_architecture",
    "load_base",
    "weights_dtype",
]

# Not weights, or different in each release: they would change bytes without changing the model.
_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "_commit_hash", "_attn_implementation_autoset")

_OTHER_CLASS = {
    "saved model": "Install a release that has it.",
    "base model": "Give a model of a class of transformers, which a saved model can name.",
}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A loaded base model `M0`.

    Args:
        model (`transformers.PreTrainedModel`): holding `theta_0`.
        processor (*tokenizer or image processor*, *optional*): made for it.
        name_or_path (`str`): Hub id, or `""` for a model that exists only here.
        revision (`str`, *optional*): commit of the Hub repo.
        digest (`str`): SHA-256 of all parameters and buffers.
        embedded (`bool`): whether a saved model must carry the base inside, because no Hub has it.
        fresh (*dict* of `str` to `torch.Tensor`): parameters that the checkpoint lacks, drawn at load (a new head,
            an adapter).
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
    """

    model: Any
    processor: Any
    name_or_path: str
    revision: str | None
    digest: str
    embedded: bool
    fresh: dict[str, torch.Tensor]
    space: PeftSpace | None = None

    def config_dict(self) -> dict[str, Any]:
        """Return the model's configuration without what changes from release to release."""
        values = self.model.config.to_dict()
        for key in _VOLATILE_CONFIG_KEYS:
            values.pop(key, None)
        values["architectures"] = [type(self.model).__name__]
        return dict(json.loads(json.dumps(values, default=str)))

    def generation_dict(self) -> dict[str, Any] | None:
        """Return the model's defaults for `generate`, if it generates."""
        generation = getattr(self.model, "generation_config", None)
        if generation is None or not self.model.can_generate():
            return None
        return {key: value for key, value in generation.to_diff_dict().items() if key not in _VOLATILE_CONFIG_KEYS}

    def reference(self) -> BaseReference:
        """Return what `config.json` says of the base model."""
        return BaseReference(
            name_or_path=self.name_or_path,
            revision=self.revision,
            digest=self.digest,
            embedded=self.embedded,
            dtype=str(self.model.dtype).removeprefix("torch."),
        )


def base_digest(model: Any, adapter: frozenset[str] = frozenset()) -> str:
    """Return the SHA-256 of a model's parameters and persistent buffers; tied weights count once.

    Args:
        model (`transformers.PreTrainedModel`): the model.
        adapter (*frozenset* of `str`): names of an adapter inside it, which do not count.
    """
    return digest_tensors(base_weights(model, adapter))


def base_weights(model: Any, adapter: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
    """Return what `base_digest` is the digest of."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    weights = {**dict(model.named_parameters()), **buffers}
    return {plain_name(name): value for name, value in weights.items() if name not in adapter}


def load_base(
    base: Any,
    spec: TaskSpec,
    *,
    num_labels: int | None,
    processor: Any = None,
    revision: str | None = None,
    run_seed: int = 0,
    token: str | None = None,
    cache_dir: str | None = None,
    space: PeftSpace | None = None,
    dtype: str | None = None,
    needs_processor: bool = True,
) -> BaseModel:
    """Load the base model that a build starts from.

    Args:
        base (`str`, `Path`, *dict* or `transformers.PreTrainedModel`): a Hub id, a folder, a configuration
            (`{"model_type": "gpt2", ...}`: drawn at random from the run seed), or a model in memory.
        spec (`TaskSpec`): decides the head.
        num_labels (`int`, *optional*): size of a classification head.
        processor (*optional*): tokenizer or image processor; otherwise loaded with the base.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        run_seed (`int`): a head that the checkpoint lacks is drawn from it.
        token (`str`, *optional*): for private repos.
        cache_dir (`str`, *optional*): of huggingface_hub.
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
        dtype (`str`, *optional*): of the weights: "float32" (what is loaded by default) or "bfloat16". A model in
            memory keeps its own unless it is given.
        needs_processor (`bool`): whether text has to be tokenised.

    Raises:
        HubError: if the base is neither here nor in the cache, and the Hub cannot be reached.
        IncompatibleBaseError: if the base cannot be loaded, or has another number of labels.
        RecipeError: if the configuration names no known model type, or the adapter does not fit.
    """
    import transformers

    from hf_clamu.hub.pull import require_reachable

    require_base(base)
    if isinstance(base, transformers.PreTrainedConfig):
        base = base.to_dict()
    labels = labels_of(spec, num_labels)
    auto = getattr(transformers, traits_of(spec.kind).auto_class)
    fresh: dict[str, torch.Tensor] = {}
    name, commit, embedded = "", None, True
    in_memory = isinstance(base, transformers.PreTrainedModel)
    if not in_memory and not isinstance(base, Mapping):
        embedded = Path(base).is_dir()
        if not embedded:
            require_reachable(str(base), revision=revision, token=token, cache_dir=cache_dir)
            # First, so that all files are of one commit, and the one that is recorded.
            commit = _commit_of(str(base), revision=revision, token=token, cache_dir=cache_dir) or revision
            name, revision = str(base), commit
        if processor is None:
            processor = load_processor(str(base), spec.kind, revision=commit, token=token, cache_dir=cache_dir)
    processor = copy.deepcopy(processor)  # ours to settle, and safe from what the caller does with theirs
    padding = _settle_padding(processor, spec)
    with seeded(derive_seed(run_seed, "base_init")):
        try:
            if in_memory:
                model = rebuilt(base, load_architecture(type(base).__name__, "base model"), padding)
                require_same_labels(model.config.id2label or {}, labels)
                require_same_positions(model, getattr(base.config, "pad_token_id", None))
            elif isinstance(base, Mapping):
                model = _from_config(auto, config_of_mapping(base, labels), padding)
            else:
                source = {"revision": revision or "main", "token": token, "cache_dir": cache_dir}
                model, fresh, own_labels = load_pretrained(
                    auto, str(base), labels=labels, settings=padding, source=source
                )
                require_same_labels(own_labels, labels)
        except AssertionError as error:  # torch's word for a padding token outside an embedding
            raise _no_padding(padding, str(error)) from error
    if dtype is not None:
        cast_weights(model, weights_dtype(dtype))
    found = getattr(model.config, "num_labels", None)
    if labels and found != labels["num_labels"]:
        raise IncompatibleBaseError(
            f"The base model has {found} labels, but the tasks have {labels['num_labels']} "
            f"({', '.join(labels['label2id'])}). Give a model with that head, or one without a head."
        )
    if labels:  # the names of the data are those of the merged model
        model.config.id2label, model.config.label2id = dict(labels["id2label"]), dict(labels["label2id"])
    rows = ModelLimits.of(model).embeddings if padding else None
    if rows is not None and (padding["pad_token_id"] or 0) >= rows:
        raise _no_padding(padding, f"it has {rows} embeddings")
    if processor is None and traits_of(spec.kind).reads != "image" and needs_processor:
        raise IncompatibleBaseError(
            "The base model comes without a tokenizer, and text tasks need one: give processing_class= (in a "
            "recipe: tokenizer), a transformers tokenizer."
        )
    if traits_of(spec.kind).labels == "decoder" and processor is not None:
        _settle_start(model, processor)
    digest = base_digest(model)
    fresh = {} if embedded else fresh
    if space is not None:
        space, adapter = space.enter(model, run_seed)
        fresh |= adapter
    model.eval()
    return BaseModel(
        model=model,
        processor=processor,
        name_or_path=name,
        revision=commit,
        digest=digest,
        embedded=embedded,
        fresh=fresh,
        space=space,
    )


def _from_config(auto: Any, config: Any, padding: Mapping[str, Any]) -> Any:
    def refused(cause: str) -> RecipeError:
        return RecipeError(f"base_model describes a {config.model_type} that transformers does not make: {cause}")

    for key, value in padding.items():
        setattr(config, key, value)
    with foreign_files(refused), making_models():
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _no_padding(padding: Mapping[str, Any], cause: str) -> IncompatibleBaseError:
    return IncompatibleBaseError(
        f"The base model cannot be made with the tokenizer's padding token {padding.get('pad_token_id')}: {cause}. "
        "Give the tokenizer that the model was made for, one that pads with a token of its own "
        "(tokenizer.pad_token = tokenizer.eos_token), or a model with more embeddings."
    )


def weights_dtype(dtype: str) -> torch.dtype:
    """Return the type that a recipe names.

    Raises:
        RecipeError: if it is none that weights can have.
    """
    if dtype not in ("float32", "bfloat16"):
        raise RecipeError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}.")
    found: torch.dtype = getattr(torch, dtype)
    return found


def empty_model(base: Any, spec: TaskSpec, *, num_labels: int | None, revision: str | None = None) -> Any:
    """Return the base model of a build without its weights, on the meta device.

    Args:
        base (`str` or *dict*): a Hub id, a folder or a configuration, as `load_base` takes it.
        spec (`TaskSpec`): decides the head.
        num_labels (`int`, *optional*): size of a classification head.
        revision (`str`, *optional*): branch, tag or commit on the Hub.

    Raises:
        HubError: if the base is neither here nor in the cache, and the Hub cannot be reached.
        IncompatibleBaseError: if its configuration cannot be loaded.
        RecipeError: if the configuration names no known model type.
    """
    import transformers

    from hf_clamu.hub.pull import require_reachable

    require_base(base)
    labels = labels_of(spec, num_labels)
    if isinstance(base, Mapping):
        config = config_of_mapping(base, labels)
    else:
        if not Path(base).is_dir():
            require_reachable(str(base), revision=revision)
        config = config_of_repository(str(base), labels, revision=revision or "main")
    with torch.device("meta"):
        return _from_config(getattr(transformers, traits_of(spec.kind).auto_class), config, {})


def _commit_of(name: str, *, revision: str | None, token: str | None, cache_dir: str | None) -> str | None:
    """Return the commit that a branch or tag of a Hub repo stands for."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(name, "config.json", revision=revision or "main", token=token, cache_dir=cache_dir)
    except (OSError, ValueError):
        return None  # loading says what is wrong
    commit: str | None = extract_commit_hash(path, None)
    return commit


def _settle_padding(processor: Any, spec: TaskSpec) -> dict[str, Any]:
    """Give a tokenizer a padding token, and return what the model's configuration has to say of it.

    It must say so before the model is made: embeddings keep the id (its row learns nothing, and RoBERTa counts its
    positions from it), so a model that is told later is another one than what its configuration makes when loaded.
    """
    if traits_of(spec.kind).reads == "image" or processor is None:
        return {}
    if processor.pad_token_id is None:
        processor.pad_token = processor.eos_token or processor.unk_token
    return {"pad_token_id": processor.pad_token_id}


def _settle_start(model: Any, processor: Any) -> None:
    if getattr(model.config, "decoder_start_token_id", None) is None:
        # A configuration alone need not say what a decoder starts with; T5 and its kin start with padding.
        model.config.decoder_start_token_id = processor.pad_token_id
        model.generation_config.decoder_start_token_id = processor.pad_token_id
        model.generation_config.pad_token_id = processor.pad_token_id


def load_architecture(architecture: str, what: str = "saved model") -> Any:
    """Return transformers' class of this name.

    Args:
        architecture (`str`): the name.
        what (`str`): whose it is, for the message.

    Raises:
        IncompatibleBaseError: if the installed transformers has none.
    """
    import transformers

    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise IncompatibleBaseError(
            f"The {what} is a {architecture!r}, which the installed transformers {transformers.__version__} does not "
            f"have. {_OTHER_CLASS[what]}"
        )
    return found
