"""Loading the base model that a build starts from."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.base_models.adapters.insertion import add_adapter
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.casting import cast_weights, weights_dtype
from hf_clamu.base_models.config import config_of_mapping, config_of_repository, labels_of, require_same_labels
from hf_clamu.base_models.foreign import foreign_files
from hf_clamu.base_models.identity import BaseModel, base_digest, load_architecture
from hf_clamu.base_models.in_memory import rebuilt, require_base
from hf_clamu.base_models.library_calls import making_models
from hf_clamu.base_models.pretrained import load_pretrained, require_same_positions
from hf_clamu.base_models.processors import load_processor
from hf_clamu.base_models.quantization.modules import quantization_of
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.checkpoint.layout import CONFIG_NAME
from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.hub.pull import require_reachable
from hf_clamu.tasks import ModelLimits, TaskSpec, traits_of
from hf_clamu.tasks.conversations import ChatTemplate
from hf_clamu.training import derive_seed, seeded

__all__ = ["empty_model", "load_base"]


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
    quantization: Quantization | None = None,
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
        quantization (`Quantization`, *optional*): store its linear layers so. It may be stored so already if the
            adapter leaves weights as they are.
        needs_processor (`bool`): whether text has to be tokenised.

    Raises:
        HubError: if the base is neither here nor in the cache, and the Hub cannot be reached.
        IncompatibleBaseError: if the base cannot be loaded, or has another number of labels.
        RecipeError: if the configuration names no known model type, or the adapter does not fit.
    """
    source = _Source.find(base, revision=revision, token=token, cache_dir=cache_dir)
    # A copy: it may get a padding token, and the caller may change theirs later.
    processor = copy.deepcopy(source.processor(spec) if processor is None else processor)
    if spec.chat_template is not None and processor is not None:
        processor.chat_template = spec.chat_template  # saved with it, so that others apply the same
    storing = _storing(source, quantization, space, dtype)
    labels, padding = labels_of(spec, num_labels), _resolve_padding(processor, spec)
    model, fresh = _make(source, spec, labels, padding, run_seed=run_seed, storing=storing)
    if dtype is not None and quantization_of(model) is None:
        cast_weights(model, weights_dtype(dtype))
    if needs_processor:
        _require_processor(processor, spec)
    if traits_of(spec.kind).labels == "decoder" and processor is not None:
        _resolve_decoder_start(model, processor)
    made = _finish(source, model, fresh, processor=processor, space=space, run_seed=run_seed)
    # Embedded files hold what was quantised here: transformers writes quantised weights as they are.
    at_load = quantization is not None and not source.is_embedded
    return dataclasses.replace(made, quantization=quantization_of(model), is_quantized_at_load=at_load)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a base model comes from: the Hub, a folder, a configuration or memory."""

    base: Any
    hub_id: str = ""
    commit: str | None = None
    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None

    @classmethod
    def find(cls, base: Any, *, revision: str | None, token: str | None, cache_dir: str | None) -> _Source:
        """Check what is given as a base model, and find out which commit a name on the Hub stands for."""
        import transformers

        require_base(base)
        if isinstance(base, transformers.PreTrainedConfig):
            base = base.to_dict()
        access: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
        if isinstance(base, (transformers.PreTrainedModel, Mapping)) or Path(base).is_dir():
            return cls(base=base, revision=revision, **access)
        require_reachable(str(base), revision=revision, **access)
        # First, so that all files are of one commit, and of the one that is recorded.
        commit = _commit_of(str(base), revision=revision, **access) or revision
        return cls(base=base, hub_id=str(base), commit=commit, revision=commit, **access)

    @property
    def is_embedded(self) -> bool:
        """Whether a saved model must carry the base model inside, because no Hub has it."""
        return not self.hub_id

    @property
    def has_name(self) -> bool:
        """Whether it is loaded from a folder or the Hub."""
        return isinstance(self.base, (str, os.PathLike))

    def processor(self, spec: TaskSpec) -> Any:
        """Return the tokenizer or image processor that comes with it, if there is one."""
        if not self.has_name:
            return None
        return load_processor(
            str(self.base), spec.kind, revision=self.commit, token=self.token, cache_dir=self.cache_dir
        )


def _storing(
    source: _Source, quantization: Quantization | None, space: PeftSpace | None, dtype: str | None
) -> dict[str, Any]:
    """Return how the weights of a base model from a folder or the Hub are held, see `load_pretrained`."""
    if quantization is not None:
        quantization.require_adapter(space)
        quantization.require_weights(source.base)
    return {
        "quantization": quantization,
        "may_be_quantized": space is not None and space.is_live and space.peft_type == "LORA",
        "dtype": torch.float32 if dtype is None else weights_dtype(dtype),
    }


def _make(
    source: _Source,
    spec: TaskSpec,
    labels: Mapping[str, Any],
    padding: Mapping[str, Any],
    *,
    run_seed: int,
    storing: Mapping[str, Any],
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a base model with the head that tasks need, and the parameters that its checkpoint lacks."""
    import transformers

    auto = getattr(transformers, traits_of(spec.kind).auto_class)
    fresh: dict[str, torch.Tensor] = {}
    with seeded(derive_seed(run_seed, "base_init")):
        try:
            if isinstance(source.base, Mapping):
                model = _from_config(auto, config_of_mapping(source.base, labels), padding)
            elif source.has_name:
                access = {"token": source.token, "cache_dir": source.cache_dir}
                model, fresh, own_labels = load_pretrained(
                    auto,
                    str(source.base),
                    labels=labels,
                    settings=padding,
                    source={"revision": source.revision or "main", **access},
                    **storing,
                )
                require_same_labels(own_labels, labels)
            else:
                model = rebuilt(source.base, load_architecture(type(source.base).__name__, "base model"), padding)
                require_same_labels(model.config.id2label or {}, labels)
                require_same_positions(model, getattr(source.base.config, "pad_token_id", None))
        except AssertionError as error:  # torch's word for a padding token outside an embedding
            raise _no_padding(padding, str(error)) from error
    _apply_labels(model, labels)
    num_embeddings = ModelLimits.of(model).embeddings if padding else None
    if num_embeddings is not None and (padding["pad_token_id"] or 0) >= num_embeddings:
        raise _no_padding(padding, f"it has {num_embeddings} embeddings")
    return model, fresh


def _from_config(auto: Any, config: Any, padding: Mapping[str, Any]) -> Any:
    def refused(cause: str) -> RecipeError:
        return RecipeError(f"base_model describes a {config.model_type} that transformers does not make: {cause}")

    for key, value in padding.items():
        setattr(config, key, value)
    with foreign_files(refused), making_models():
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _apply_labels(model: Any, labels: Mapping[str, Any]) -> None:
    """Give a model the label names of the data, which are those of the merged model."""
    if not labels:
        return
    num_labels = getattr(model.config, "num_labels", None)
    if num_labels != labels["num_labels"]:
        raise IncompatibleBaseError(
            f"The base model has {num_labels} labels, but the tasks have {labels['num_labels']} "
            f"({', '.join(labels['label2id'])}). Give a model with that head, or one without a head."
        )
    model.config.id2label, model.config.label2id = dict(labels["id2label"]), dict(labels["label2id"])


def _no_padding(padding: Mapping[str, Any], cause: str) -> IncompatibleBaseError:
    return IncompatibleBaseError(
        f"The base model cannot be made with the tokenizer's padding token {padding.get('pad_token_id')}: {cause}. "
        "Give the tokenizer that the model was made for, one that pads with a token of its own "
        "(tokenizer.pad_token = tokenizer.eos_token), or a model with more embeddings."
    )


def _resolve_padding(processor: Any, spec: TaskSpec) -> dict[str, Any]:
    """Give a tokenizer a padding token, and return what the model's configuration must say about it.

    Set before the model is made: embeddings keep the id (its row learns nothing, and RoBERTa counts its positions from
    it), so setting it later gives a model that the saved configuration cannot reproduce.
    """
    if traits_of(spec.kind).reads == "image" or processor is None:
        return {}
    if processor.pad_token_id is None:
        processor.pad_token = processor.eos_token or processor.unk_token
    return {"pad_token_id": processor.pad_token_id}


def _require_processor(processor: Any, spec: TaskSpec) -> None:
    if processor is None and traits_of(spec.kind).reads != "image":
        raise IncompatibleBaseError(
            "The base model comes without a tokenizer, and text tasks need one: give processing_class= (in a "
            "recipe: tokenizer), a transformers tokenizer."
        )
    if spec.conversational:
        ChatTemplate(spec, processor)  # one that cannot be used should show before anything is trained


def _resolve_decoder_start(model: Any, processor: Any) -> None:
    if getattr(model.config, "decoder_start_token_id", None) is None:
        # A configuration alone need not say what a decoder starts with; T5 and its kin start with padding.
        model.config.decoder_start_token_id = processor.pad_token_id
        model.generation_config.decoder_start_token_id = processor.pad_token_id
        model.generation_config.pad_token_id = processor.pad_token_id


def _finish(
    source: _Source,
    model: Any,
    fresh: dict[str, torch.Tensor],
    *,
    processor: Any,
    space: PeftSpace | None,
    run_seed: int,
) -> BaseModel:
    """Put the adapter in, and say what the base model is."""
    digest = base_digest(model)
    fresh = {} if source.is_embedded else fresh
    if space is not None:
        space, values = add_adapter(space, model, run_seed)
        fresh |= values
    model.eval()
    return BaseModel(
        model=model,
        processor=processor,
        name_or_path=source.hub_id,
        revision=source.commit,
        digest=digest,
        embedded=source.is_embedded,
        fresh=fresh,
        space=space,
    )


def empty_model(
    base: Any, spec: TaskSpec, *, num_labels: int | None, revision: str | None = None, may_be_quantized: bool = False
) -> Any:
    """Return the base model of a build without its weights, on the meta device.

    Args:
        base (`str` or *dict*): a Hub id, a folder or a configuration, as `load_base` takes it.
        spec (`TaskSpec`): decides the head.
        num_labels (`int`, *optional*): size of a classification head.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        may_be_quantized (`bool`): its files may hold quantised weights; the model has whole ones.

    Raises:
        HubError: if the base is neither here nor in the cache, and the Hub cannot be reached.
        IncompatibleBaseError: if its configuration cannot be loaded.
        RecipeError: if the configuration names no known model type.
    """
    import transformers

    require_base(base)
    labels = labels_of(spec, num_labels)
    if isinstance(base, Mapping):
        config = config_of_mapping(base, labels)
    else:
        if not Path(base).is_dir():
            require_reachable(str(base), revision=revision)
        config = config_of_repository(
            str(base), labels, may_be_quantized=may_be_quantized, revision=revision or "main"
        )
    with torch.device("meta"):
        return _from_config(getattr(transformers, traits_of(spec.kind).auto_class), config, {})


def _commit_of(name: str, *, revision: str | None, token: str | None, cache_dir: str | None) -> str | None:
    """Return the commit that a branch or tag of a Hub repo stands for."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(name, CONFIG_NAME, revision=revision or "main", token=token, cache_dir=cache_dir)
    except (OSError, ValueError):
        return None  # loading says what is wrong
    commit: str | None = extract_commit_hash(path, None)
    return commit
