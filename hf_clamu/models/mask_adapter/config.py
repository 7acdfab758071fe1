"""The configuration of a mask adapter: which merged delta it selects weights of, and where that delta is."""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig

from hf_clamu.checkpoint.layout import MASK_CONFIG_NAME
from hf_clamu.checkpoint.masks import EMBEDDED_BASE, FACTORS_KEY, REQUIRED_IMPORT
from hf_clamu.exact import canonical_json
from hf_clamu.models.mask_adapter.card import correct_card
from hf_clamu.models.mask_adapter.delta import DeltaSource

__all__ = ["ClamuMaskConfig", "ClamuPeftType"]

# What PEFT forwards to the Hub; the delta is fetched in the same way as the adapter.
_DOWNLOAD_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download", "endpoint")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")
_INSIDE_A_MODEL = re.compile(r"(?:(?P<model>.+)/)?masks/[^/]+/?")
_OPTIONAL = ("delta_name_or_path", "delta_revision", "delta_subfolder", "task_type")


class ClamuPeftType(str, enum.Enum):
    """The type of adapter that this package adds to PEFT."""

    CLAMU_MASK = "CLAMU_MASK"


@dataclass
class ClamuMaskConfig(PeftConfig):
    """Configuration of a mask adapter: one bit per weight of a merged delta.

    An adapter inside a saved model (`masks/cluster_XXX/`) finds the delta there. One that is saved alone names the Hub
    repo of the delta; if it came from a folder it names none, and the delta is given with `attach_delta`.

    Args:
        cluster (`int`, *optional*): the number of the cluster that the mask was learned for.
        cluster_name (`str`, *optional*): its name.
        delta_digest (`str`): SHA-256 of the merged delta that the mask belongs to.
        mask_digest (`str`): SHA-256 of the mask's bits and factors, which are compared with it before they are used.
        alpha (`float`): the scaling coefficient of the merged delta.
        factors (*dict* of `str` to `float`, *optional*): what `alpha` is multiplied by, per parameter.
        delta_name_or_path (`str`, *optional*): Hub id or folder of the saved model with the delta. A folder is not
            written to files.
        delta_revision (`str`, *optional*): branch, tag or commit of that repo; by default its newest state, where a
            mask of an older delta is refused.
        delta_subfolder (`str`, *optional*): where in that repo the saved model is.
        requires_import (`str`): the package whose import makes this type known to PEFT.
    """

    cluster: int | None = field(default=None, metadata={"help": "Number of the cluster that the mask is of."})
    cluster_name: str | None = field(default=None, metadata={"help": "Name of that cluster."})
    delta_digest: str = field(default="", metadata={"help": "SHA-256 of the merged delta that the mask belongs to."})
    mask_digest: str = field(default="", metadata={"help": "SHA-256 of the bits of the mask."})
    alpha: float = field(default=0.0, metadata={"help": "The scaling coefficient of the merged delta."})
    factors: dict[str, float] | None = field(default=None, metadata={"help": "Factors of alpha, per parameter."})
    delta_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the saved ClAMU model that holds the merged delta."}
    )
    delta_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the delta's repo."})
    delta_subfolder: str | None = field(default=None, metadata={"help": "Folder of the saved model in that repo."})
    inference_mode: bool = field(default=True, metadata={"help": "Always true: masks are not trained through PEFT."})
    requires_import: str = field(
        default=REQUIRED_IMPORT, metadata={"help": "The package whose import makes this type known to PEFT."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = ClamuPeftType.CLAMU_MASK
        self._origin: DeltaSource | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> ClamuMaskConfig:
        """Load the configuration of an adapter and remember where it lies, which is where its delta is looked for.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder or a Hub id.
            subfolder (`str`, *optional*): the adapter's folder in there, as `masks/cluster_003`.
            kwargs (*optional*): `revision`, `token`, `cache_dir` and other options of `hf_hub_download`.
        """
        name = os.fspath(pretrained_model_name_or_path)
        config: ClamuMaskConfig = super().from_pretrained(name, subfolder=subfolder, **kwargs)
        if config.base_model_name_or_path == EMBEDDED_BASE:
            config.base_model_name_or_path = None  # so that PEFT does not look for it
        options = {key: kwargs[key] for key in _DOWNLOAD_OPTIONS if kwargs.get(key) is not None}
        if config.delta_name_or_path is not None:
            config._origin = DeltaSource(
                config.delta_name_or_path, config.delta_revision, config.delta_subfolder or "", options
            )
        elif (Path(name) / (subfolder or "")).is_dir():
            # By its parts, not resolved: the files of a Hub cache are links to blobs elsewhere.
            folder = Path(os.path.abspath(Path(name) / (subfolder or "")))
            config._origin = DeltaSource(str(folder.parent.parent))
        elif inside := _INSIDE_A_MODEL.fullmatch(subfolder or ""):
            config._origin = DeltaSource(name, kwargs.get("revision"), inside["model"] or "", options)
        return config

    @property
    def delta_source(self) -> DeltaSource | None:
        """Where the merged delta is; `None` if neither the file nor its place says so."""
        if self._origin is None and self.delta_name_or_path is not None:
            return DeltaSource(self.delta_name_or_path, self.delta_revision, self.delta_subfolder or "")
        return self._origin

    def name_delta(self, source: DeltaSource | None) -> None:
        """Note where the delta was found, if others can find it there, and forget with what token."""
        self._origin = None if source is None else DeltaSource(source.name_or_path, source.revision, source.subfolder)
        if source is not None and source.on_hub:
            self.delta_name_or_path = source.name_or_path
            self.delta_revision = source.revision
            self.delta_subfolder = source.subfolder or None

    def to_file_dict(self) -> dict[str, Any]:
        """Return what `adapter_config.json` holds: no paths of this machine and no versions of libraries."""
        values: dict[str, Any] = {
            "peft_type": ClamuPeftType.CLAMU_MASK.value,
            "auto_mapping": self.auto_mapping,
            "base_model_name_or_path": _public(self.base_model_name_or_path) or EMBEDDED_BASE,
            "revision": self.revision,
            "cluster": self.cluster,
            **({} if self.cluster_name is None else {"cluster_name": self.cluster_name}),
            "delta_digest": self.delta_digest,
            "mask_digest": self.mask_digest,
            "alpha": self.alpha,
            **({} if self.factors is None else {FACTORS_KEY: self.factors}),
            "inference_mode": True,
            "requires_import": REQUIRED_IMPORT,
        }
        if _public(self.delta_name_or_path) is not None:
            values |= {key: getattr(self, key) for key in _OPTIONAL if getattr(self, key) is not None}
        elif self.task_type is not None:
            values["task_type"] = self.task_type
        return values

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json`, the same bytes as in a saved model, and correct a card that PEFT wrote there.

        Args:
            save_directory (`str` or `Path`): the folder; it is made if it is missing.
            kwargs (*optional*): `auto_mapping_dict`, PEFT's note of the base model's class.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        values = self.to_file_dict()
        noted = kwargs.get("auto_mapping_dict")
        if values["auto_mapping"] is None and noted is not None:
            # The class by its public name: modules move, and a ClamuModel's class is not importable by its name.
            values["auto_mapping"] = {"base_model_class": noted["base_model_class"], "parent_library": "transformers"}
        (folder / MASK_CONFIG_NAME).write_bytes(canonical_json(values))
        correct_card(folder, _public(self.delta_name_or_path) or _public(self.base_model_name_or_path))


def _public(name: str | None) -> str | None:
    """Return a Hub id as it is; `None` for what is a folder on this machine."""
    if name is None or Path(name).exists() or not _HUB_ID.fullmatch(name):
        return None
    return name
