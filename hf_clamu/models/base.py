"""The base model: loading it, naming it, and proving that it is the one that was merged into."""

from __future__ import annotations

import copy
import difflib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.exact import canonical_json, digest_tensors
from hf_clamu.models.peft_space import PeftSpace, plain_name
from hf_clamu.models.quiet import without_report
from hf_clamu.tasks import TaskSpec
from hf_clamu.training import derive_seed, seeded

__all__ = [
    "AUTO_CLASSES",
    "BaseModel",
    "base_digest",
    "base_weights",
    "empty_model",
    "load_architecture",
    "load_base",
    "load_processor",
    "save_processor",
    "settled_bytes",
]

# Names of transformers' Auto classes, so that importing this file does not import all of them.
AUTO_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}
# Not weights, or different in each release: they would change bytes without changing the model.
_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "_commit_hash", "_attn_implementation_autoset")
# From this likeness on, a key of a configuration is a misspelling; "num_layers" is so near to "n_layer".
_MISSPELT = 0.82
# Nearer to another than that, but what older releases wrote.
_OLD_CONFIG_KEYS = ("sep_token_id", "static_position_embeddings")
# The same for processors, and what from_pretrained notes there of its own call.
_VOLATILE_PROCESSOR_KEYS = (
    "_commit_hash",
    "is_local",
    "local_files_only",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
    "transformers_version",
)
_PROCESSOR_CONFIGS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


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

    def reference(self) -> dict[str, Any]:
        """Return what `config.json` says of the base model."""
        return {
            "name_or_path": self.name_or_path,
            "revision": self.revision,
            "digest": self.digest,
            "embedded": self.embedded,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }


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

    from hf_clamu.models.hub import require_reachable

    labels = _labels(spec, num_labels)
    auto = getattr(transformers, AUTO_CLASSES[spec.kind])
    fresh: dict[str, torch.Tensor] = {}
    name, commit, embedded = "", None, True
    in_memory = isinstance(base, transformers.PreTrainedModel)
    if not in_memory and not isinstance(base, dict):
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
                model = _rebuilt(base, padding)
            elif isinstance(base, dict):
                model = auto.from_config(_padded(_config(base, labels), padding))
            else:
                model, info = _from_pretrained(
                    auto, str(base), padding, revision=revision, token=token, cache_dir=cache_dir, labels=labels
                )
                state = model.state_dict()
                fresh = {key: state[key].clone() for key in sorted({*info["missing_keys"], *_mismatched(info)})}
        except AssertionError as error:  # torch's word for a padding token outside an embedding
            raise IncompatibleBaseError(
                f"The base model cannot be made with the tokenizer's padding token {padding.get('pad_token_id')}: "
                f"{error}. Give the tokenizer that the model was made for, or a model with more embeddings."
            ) from error
    if dtype is not None:
        model.to(_weights_dtype(dtype))
    found = getattr(model.config, "num_labels", None)
    if labels and found != labels["num_labels"]:
        raise IncompatibleBaseError(
            f"The base model has {found} labels, but the tasks have {labels['num_labels']} "
            f"({', '.join(labels['label2id'])}). Give a model with that head, or one without a head."
        )
    if processor is None and spec.kind != "image-classification" and needs_processor:
        raise IncompatibleBaseError(
            "The base model comes without a tokenizer, and text tasks need one: give processing_class= (in a "
            "recipe: tokenizer), a transformers tokenizer."
        )
    if spec.kind == "seq2seq-lm" and processor is not None:
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


def _weights_dtype(dtype: str) -> torch.dtype:
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

    from hf_clamu.models.hub import require_reachable

    labels = _labels(spec, num_labels)
    if isinstance(base, dict):
        config = _config(base, labels)
    else:
        if not Path(base).is_dir():
            require_reachable(str(base), revision=revision)
        try:
            config = transformers.AutoConfig.from_pretrained(base, revision=revision or "main", **labels)
        except (OSError, ValueError) as error:
            raise IncompatibleBaseError(
                f"The configuration of the base model {base!r} could not be loaded: {str(error).splitlines()[0]}"
            ) from error
    with torch.device("meta"):
        return getattr(transformers, AUTO_CLASSES[spec.kind]).from_config(config)


def _labels(spec: TaskSpec, num_labels: int | None) -> dict[str, Any]:
    if spec.kind in ("causal-lm", "seq2seq-lm"):
        return {}
    names = spec.label_names or tuple(str(i) for i in range(num_labels or 0))
    labels: dict[str, Any] = {"num_labels": len(names), "id2label": dict(enumerate(names))}
    return {**labels, "label2id": {name: i for i, name in enumerate(names)}}


def _mismatched(info: dict[str, Any]) -> list[str]:
    return [entry if isinstance(entry, str) else entry[0] for entry in info.get("mismatched_keys", ())]


def _config(values: dict[str, Any], labels: dict[str, Any]) -> Any:
    import transformers

    values = dict(values)
    model_type = values.pop("model_type", None)
    known = transformers.CONFIG_MAPPING.keys()
    if model_type not in known:
        near = difflib.get_close_matches(str(model_type), list(known), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"base_model needs a model_type that transformers knows, got {model_type!r}.{hint}")
    _refuse_misspelt(transformers.CONFIG_MAPPING[model_type], values)
    return transformers.AutoConfig.for_model(model_type, **values, **labels)


def _refuse_misspelt(kind: Any, values: dict[str, Any]) -> None:
    """Refuse keys that are nearly one of a configuration class: transformers takes them in silence, to no effect.

    Other strange keys pass: files of older releases have many, and so have those that name what `generate` does.
    """
    import transformers

    # A configuration may say what `generate` is to do, whether its class knows the name or not.
    own, generic = set(kind.attribute_map), {*dir(kind), *vars(transformers.GenerationConfig())}
    for parent in kind.__mro__:
        names = {*inspect.signature(parent.__init__).parameters, *vars(parent).get("__annotations__", {})}
        if "PreTrainedConfig" in parent.__name__ or "PretrainedConfig" in parent.__name__ or parent is object:
            generic |= names
        else:
            own |= names
    for key in values:
        if key in own or key in generic or key in _OLD_CONFIG_KEYS:
            continue
        near = difflib.get_close_matches(str(key), own, n=1, cutoff=_MISSPELT)
        if near and not hasattr(kind(), str(key)):  # some attributes are only made with an object
            raise RecipeError(
                f"base_model has the unknown key {key!r}, which would have no effect. Did you mean {near[0]!r}?"
            )


def _commit_of(name: str, *, revision: str | None, token: str | None, cache_dir: str | None) -> str | None:
    """Return the commit that a branch or tag of a Hub repo stands for."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        path = cached_file(name, "config.json", revision=revision or "main", token=token, cache_dir=cache_dir)
    except (OSError, ValueError):
        return None  # loading says what is wrong
    commit: str | None = extract_commit_hash(path, None)
    return commit


def _from_pretrained(
    auto: Any,
    name: str,
    padding: dict[str, Any],
    *,
    revision: str | None,
    token: str | None,
    cache_dir: str | None,
    labels: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig

    source: dict[str, Any] = {"revision": revision or "main", "token": token, "cache_dir": cache_dir}
    try:
        with without_report():
            model, info = auto.from_pretrained(
                name,
                config=_padded(AutoConfig.from_pretrained(name, **source, **labels), padding),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=bool(labels),
                **source,
            )
    except (OSError, ValueError) as error:
        raise IncompatibleBaseError(
            f"The base model {name!r} could not be loaded: {str(error).splitlines()[0]} Give a Hub id (org/name), a "
            "folder written by save_pretrained, or a configuration with a model_type."
        ) from error
    return model, info


def load_processor(
    name: str, kind: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> Any:
    """Load the tokenizer or image processor of a model; `None` where there is none."""
    import transformers

    auto = transformers.AutoImageProcessor if kind == "image-classification" else transformers.AutoTokenizer
    try:
        return auto.from_pretrained(name, revision=revision or "main", token=token, cache_dir=cache_dir)
    except (OSError, ValueError, KeyError):
        return None


def save_processor(processor: Any, folder: Path) -> None:
    """Write a tokenizer or image processor; how it was loaded and last called does not show in the bytes."""
    backend = getattr(processor, "backend_tokenizer", None)
    if backend is not None:
        # A fast tokenizer keeps the truncation and padding of its last call, sets them anew at the next one, and
        # would write them into tokenizer.json.
        backend.no_truncation()
        backend.no_padding()
    processor.save_pretrained(folder)
    for path in (folder / name for name in _PROCESSOR_CONFIGS):
        if path.exists():
            path.write_bytes(settled_bytes(path))


def settled_bytes(path: Path) -> bytes:
    """Return what `save_processor` would have written for a file of a tokenizer or image processor.

    Args:
        path (`Path`): the file, perhaps of the processor's own `save_pretrained`.

    Raises:
        ValueError: if it is none.
    """
    if path.name == "tokenizer.json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return bytes(tokenizer.to_str(pretty=True).encode())
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return canonical_json({key: value for key, value in values.items() if key not in _VOLATILE_PROCESSOR_KEYS})


def _settle_padding(processor: Any, spec: TaskSpec) -> dict[str, Any]:
    """Give a tokenizer a padding token, and return what the model's configuration has to say of it.

    It must say so before the model is made: embeddings keep the id (its row learns nothing, and RoBERTa counts its
    positions from it), so a model that is told later is another one than what its configuration makes when loaded.
    """
    if spec.kind == "image-classification" or processor is None:
        return {}
    if processor.pad_token_id is None:
        processor.pad_token = processor.eos_token or processor.unk_token
    return {"pad_token_id": processor.pad_token_id}


def _padded(config: Any, padding: dict[str, Any]) -> Any:
    for key, value in padding.items():
        setattr(config, key, value)
    return config


def _rebuilt(model: Any, padding: dict[str, Any]) -> Any:
    """Return the model that a given one's configuration and weights make, as every later load makes it.

    What was only set on the live object (another attention, a padding token that came later, hooks) is not in it. The
    given model is not changed, and parameters that it has frozen are frozen.
    """
    architecture = load_architecture(type(model).__name__)
    config = architecture.config_class.from_dict(model.config.to_dict())
    made = architecture._from_config(_padded(config, padding)).to(model.dtype)
    try:
        made.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise IncompatibleBaseError(
            f"The base model's weights do not fit its own configuration, so a saved model could not be loaded: "
            f"{' '.join(str(error).split())[:300]} Give a model that from_pretrained makes."
        ) from error
    made.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    given = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(given[name].requires_grad)
    return made


def _settle_start(model: Any, processor: Any) -> None:
    if getattr(model.config, "decoder_start_token_id", None) is None:
        # A configuration alone need not say what a decoder starts with; T5 and its kin start with padding.
        model.config.decoder_start_token_id = processor.pad_token_id
        model.generation_config.decoder_start_token_id = processor.pad_token_id
        model.generation_config.pad_token_id = processor.pad_token_id


def load_architecture(architecture: str) -> Any:
    """Return transformers' class of this name.

    Raises:
        IncompatibleBaseError: if the installed transformers has none.
    """
    import transformers

    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise IncompatibleBaseError(
            f"The saved model is a {architecture!r}, which the installed transformers {transformers.__version__} does "
            "not have. Install a release that has it."
        )
    return found
