"""The configuration of a base model: read from a mapping or a repository, with nothing in it that brings in code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hf_clamu.base_models.foreign import foreign_files, require_no_pointers
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.errors import IncompatibleBaseError, RecipeError
from hf_clamu.known_names import hint_for, nearest_name
from hf_clamu.tasks import TaskSpec, traits_of

__all__ = [
    "config_of_mapping",
    "config_of_repository",
    "could_not_load",
    "labels_of",
    "refuse_misspelt",
    "require_no_imports",
    "require_same_labels",
]

# Similarity above which an unknown configuration key is reported as a typo; "num_layers" is so near to "n_layer".
_MISSPELT = 0.82
# More similar than that to another key, but written by older releases.
_OLD_CONFIG_KEYS = ("sep_token_id", "static_position_embeddings")
# Left out of a published config.json: the head and the type of weights are decided here, its origin is irrelevant.
_NOT_OF_A_NEW_MODEL = (
    *("num_labels", "id2label", "label2id", "problem_type", "dtype", "torch_dtype"),
    *("architectures", "auto_map", "transformers_version", "_name_or_path", "_commit_hash"),
)
# How attention and experts are computed may be one of these; all other names are kernels that would be fetched.
_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")

_MOST_LAYERS = 10_000
_LARGEST_SIZE = 2**40


def config_of_mapping(values: Mapping[str, Any], labels: Mapping[str, Any]) -> Any:
    """Return the configuration that a mapping describes, such as the content of a published config.json.

    Args:
        values (*mapping*): with its `model_type`.
        labels (*mapping*): `num_labels` and the names, for a classification head.

    Raises:
        RecipeError: if it names no known model type, a misspelt key, or values that the type does not take.
    """
    import transformers

    model_type = values.get("model_type")
    known = transformers.CONFIG_MAPPING.keys()
    if model_type not in known:
        hint = hint_for(model_type, known, lists=False)
        raise RecipeError(f"base_model needs a model_type that transformers knows, got {model_type!r}.{hint}")
    kind = transformers.CONFIG_MAPPING[model_type]
    require_no_imports(values, kind, "base_model")
    _require_sizes(values, "base_model")
    kept = {key: value for key, value in values.items() if key not in (*_NOT_OF_A_NEW_MODEL, "model_type")}
    refuse_misspelt(kind, kept)

    def refused(cause: str) -> RecipeError:
        return RecipeError(f"base_model describes a {model_type} that transformers does not make: {cause}")

    with foreign_files(refused):
        return transformers.AutoConfig.for_model(model_type, **kept, **labels)


def _require_sizes(values: Mapping[str, Any], where: str) -> None:
    """Refuse numbers of layers that would keep a machine busy for days, and numbers that no tensor has."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _require_sizes(value, f"{where}, {key}")
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        is_count = "layers" in str(key) or str(key).endswith(("_layer", "depth"))
        most = _MOST_LAYERS if is_count else _LARGEST_SIZE
        if abs(value) > most:
            raise RecipeError(f"{where}: {key} may be {most:,} at most, got {value!r:.30}.")


def could_not_load(name: str, cause: str) -> IncompatibleBaseError:
    """Return the error for a base model that is not there or cannot be read."""
    return IncompatibleBaseError(
        f"The base model {name!r} could not be loaded: {cause} Give a Hub id (org/name), a folder written by "
        "save_pretrained, or a configuration with a model_type."
    )


def config_of_repository(
    name: str, labels: Mapping[str, Any], *, may_be_quantized: bool = False, **source: Any
) -> Any:
    """Return the configuration of a folder or Hub repository; no code of it is run.

    Args:
        name (`str`): a Hub id or a folder.
        labels (*mapping*): `num_labels` and the names, for a classification head.
        may_be_quantized (`bool`): its files may hold quantised weights.
        source: `revision`, `token` and `cache_dir`.

    Raises:
        IncompatibleBaseError: if it cannot be read, or would bring in code.
    """
    import transformers

    explain = partial(could_not_load, name)
    if Path(name).is_dir():
        require_no_pointers(Path(name), explain)
    with foreign_files(explain):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **source, **labels)
    if config.model_type == "clamu":
        raise IncompatibleBaseError(
            f"The base model {name!r} is a merged ClAMU model. `clamu export` makes a plain checkpoint of it, "
            "which can be a base."
        )
    values = {**config.to_dict(), "_attn_implementation": config._attn_implementation}
    values["_experts_implementation"] = getattr(config, "_experts_implementation", None)
    values.pop("auto_map", None)  # transformers' own class was taken
    require_no_imports(values, type(config), f"The base model {name!r}", may_be_quantized=may_be_quantized)
    return config


def require_no_imports(values: Mapping[str, Any], kind: Any, where: str, *, may_be_quantized: bool = False) -> None:
    """Check that no key of a configuration decides what code is imported or fetched.

    Only what transformers' own class declares may speak of kernels, and an implementation is one of a short list.

    Args:
        values (*mapping*): the configuration, as `config.json` has it.
        kind (*type*): transformers' class for it.
        where (`str`): what it is of, for the message.
        may_be_quantized (`bool`): it may be that of quantised files.

    Raises:
        IncompatibleBaseError: naming the key.
    """
    declared = {*inspect.signature(kind.__init__).parameters, *_annotations(kind)}
    for key, value in values.items():
        if not value:
            continue
        if "_implementation" in key or key == "attn_implementation":
            names = list(value.values()) if isinstance(value, Mapping) else [value]
            odd = [name for name in names if name is not None and name not in _IMPLEMENTATIONS]
            if odd:
                raise IncompatibleBaseError(
                    f"{where} asks for {key} = {odd[0]!r}, code that would be fetched; a configuration may name "
                    f"{', '.join(_IMPLEMENTATIONS[:3])}. Take the key out of its config.json."
                )
        elif key == "quantization_config" and may_be_quantized:
            Quantization.recorded(value, where)  # of a known method and known keys alone
        elif key == "quantization_config":
            method = value.get("quant_method") if isinstance(value, Mapping) else value
            raise IncompatibleBaseError(
                f"{where} is quantised ({key}: {method}), and finetuning adds to whole weights. Give the model that "
                "it was made from, without quantisation, or finetune through LoRA (preset: adapters)."
            )
        elif key not in declared and isinstance(value, (bool, str, Mapping)) and _names_code(key):
            raise IncompatibleBaseError(
                f"{where} has the key {key!r}, which a {kind.__name__} does not declare and which may decide what "
                "code is fetched. Take the key out of its config.json."
            )
        elif isinstance(value, Mapping) and key.endswith("_config"):
            require_no_imports(value, kind, f"{where}, {key},")


def _names_code(key: str) -> bool:
    return "kernel" in key or "quantiz" in key or key == "use_pretrained_backbone"


def _annotations(kind: Any) -> set[str]:
    return {name for parent in kind.__mro__ for name in vars(parent).get("__annotations__", {})}


def refuse_misspelt(kind: Any, values: dict[str, Any]) -> None:
    """Refuse keys that are nearly one of a configuration class: transformers takes them in silence, to no effect.

    Other unknown keys pass: files of older releases have many, and so have those that name what `generate` does.
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
        nearest = nearest_name(key, own, likeness=_MISSPELT)
        if nearest is not None and not hasattr(kind(), str(key)):  # some attributes are only made with an object
            raise RecipeError(
                f"base_model has the unknown key {key!r}, which would have no effect. Did you mean {nearest!r}?"
            )


# -- labels ----------------------------------------------------------------------------------------------------------


def labels_of(spec: TaskSpec, num_labels: int | None) -> dict[str, Any]:
    """Return what a configuration says of the labels of the data; nothing for language models.

    Args:
        spec (`TaskSpec`): has their names.
        num_labels (`int`, *optional*): their number, if they have no names.
    """
    if traits_of(spec.kind).writes_text:
        return {}
    names = spec.label_names or tuple(str(i) for i in range(num_labels or 0))
    labels: dict[str, Any] = {"num_labels": len(names), "id2label": dict(enumerate(names))}
    return {**labels, "label2id": {name: i for i, name in enumerate(names)}}


def require_same_labels(own: Mapping[int, str], labels: Mapping[str, Any]) -> None:
    """Check that a pretrained head means by each number what the data mean.

    The names of the data are those of the merged model. A head with names that say nothing (`LABEL_0`), or with none
    of the data's, is one that the tasks start from; one that has the same names at other numbers answers wrongly.

    Args:
        own (*mapping* of `int` to `str`): `id2label` of the head as it was pretrained.
        labels (*mapping*): those of the data, see `labels_of`.

    Raises:
        IncompatibleBaseError: if a name has another number, or only some of them are the head's.
    """
    if not labels or not own:
        return
    theirs = [str(own[number]) for number in sorted(own)]
    ours = [str(labels["id2label"][number]) for number in sorted(labels["id2label"])]
    folded, wanted = [name.casefold() for name in theirs], [name.casefold() for name in ours]
    if len(theirs) != len(ours) or folded == wanted or not set(folded) & set(wanted):
        return
    in_order = (
        f" Give label_names in its order: {', '.join(theirs)}."
        if sorted(theirs) == sorted(ours)
        else (" Give label_names that fit it, or a model without a head.")
    )
    raise IncompatibleBaseError(
        f"The base model's head has the labels {', '.join(theirs)} (id2label), and the data have {', '.join(ours)}: "
        f"the same numbers would mean other labels.{in_order}"
    )
