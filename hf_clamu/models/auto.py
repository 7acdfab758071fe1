"""Makes transformers' Auto classes and pipelines load saved models."""

from __future__ import annotations

from typing import Any

import transformers

from hf_clamu.base_models.identity import load_architecture
from hf_clamu.base_models.library_calls import is_loaded_by
from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.models.modeling_clamu import ClamuModel

__all__ = ["AUTO_NAMES", "register"]

AUTO_NAMES = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)
# Set by loading and not by a caller, or handled by `ClamuModel.from_pretrained`.
_NOT_GIVEN = ("_name_or_path", "dtype", "transformers_version")


def _entry(auto_name: str) -> type:
    """Return the class that one Auto class finds for `ClamuConfig`."""

    class Entry:
        config_class = ClamuConfig

        @classmethod
        def from_pretrained(cls, name: Any, *args: Any, config: ClamuConfig, **kwargs: Any) -> Any:
            architecture = load_architecture(config.architecture)
            if auto_name != "AutoModel" and not is_loaded_by(auto_name, architecture):
                raise IncompatibleBaseError(
                    f"{auto_name} was asked for, but {name!s} is a {architecture.__name__}. Load it with ClamuModel "
                    "or the Auto class of its task."
                )
            kwargs.setdefault("attn_implementation", config._attn_implementation)  # the Auto class put it there
            model = ClamuModel.from_pretrained(name, **kwargs)
            _take_over(model.config, config)
            if auto_name == "AutoModel" and model.base_model is not model:
                # Its answers are the hidden states, as a plain checkpoint's; the head stays, for it is merged, too.
                model.forward = model.base_model.forward
            return model

        @classmethod
        def _from_config(cls, config: ClamuConfig, **kwargs: Any) -> Any:
            raise IncompatibleBaseError(
                "A ClAMU model is not made from its configuration, which holds no merged weights: use from_pretrained."
            )

    Entry.__name__ = Entry.__qualname__ = f"Clamu{auto_name.removeprefix('Auto')}"
    return Entry


def _take_over(base: Any, given: ClamuConfig) -> None:
    """Bring what a caller set on our configuration (`output_hidden_states=True`, names of labels) to the base's."""
    fields = given.to_file_dict()
    own = {key: value for key, value in fields.items() if key not in ("architectures", "model_type")}
    before = ClamuConfig(**own).to_dict()
    values = {key: value for key, value in given.to_dict().items() if key not in fields and key not in _NOT_GIVEN}
    changed = {key: value for key, value in values.items() if value != before.get(key)}
    labels = changed.get("id2label", {})
    if labels and len(labels) != base.num_labels:
        raise IncompatibleBaseError(
            f"The saved model has {base.num_labels} labels and its head is not made again for {len(labels)}: leave "
            "num_labels= and id2label= out."
        )
    for key, value in changed.items():
        setattr(base, key, value)


def register() -> None:
    """Register `ClamuConfig` with the Auto classes; what `AutoModel` gives answers without its head."""
    for name in AUTO_NAMES:
        getattr(transformers, name).register(ClamuConfig, _entry(name), exist_ok=True)


register()
