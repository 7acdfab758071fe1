"""Mask adapters for PEFT: each `masks/cluster_XXX/` of a saved model is an adapter of the type `CLAMU_MASK`.

Importing this package registers the type; `import hf_clamu` sees to that as soon as PEFT is imported. Without it PEFT
raises `KeyError: 'CLAMU_MASK'`.

card.py    the card of masks that are saved alone
config.py  `ClamuMaskConfig`, the content of adapter_config.json
delta.py   the merged delta that all masks of a model share, and where it is
layer.py   the module that holds the bits of all adapters
model.py   the tuner: adds masks to a model and takes them out again
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from hf_clamu.models.mask_adapter.config import ClamuMaskConfig, ClamuPeftType
from hf_clamu.models.mask_adapter.delta import DeltaSource
from hf_clamu.models.mask_adapter.layer import ClamuMaskLayer
from hf_clamu.models.mask_adapter.model import ClamuMaskModel, attach_delta

__all__ = ["ClamuMaskConfig", "ClamuMaskLayer", "ClamuMaskModel", "ClamuPeftType", "DeltaSource", "attach_delta"]

# PEFT's register_peft_method accepts members of its own enumeration alone; the mappings take any.
_TYPE: Any = ClamuPeftType.CLAMU_MASK
PEFT_TYPE_TO_CONFIG_MAPPING[_TYPE] = ClamuMaskConfig
PEFT_TYPE_TO_TUNER_MAPPING[_TYPE] = ClamuMaskModel
PEFT_TYPE_TO_PREFIX_MAPPING[_TYPE] = ClamuMaskModel.prefix
