"""Recipes: one YAML file that says base model, data and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_clamu.errors import RecipeError
from hf_clamu.known_names import hint_for

if TYPE_CHECKING:
    from hf_clamu.merging import ClamuArguments
    from hf_clamu.tasks import DataFiles, TaskDataset
    from hf_clamu.trainer import ClamuTrainer

__all__ = ["Recipe"]

_KEYS = (
    "base_model",
    "revision",
    "dtype",
    "quantization_config",
    "tokenizer",
    "data",
    "arguments",
    "peft_config",
    "peft_merging",
    "card",
    "archive",
    "snapshot",
    "public_rows",
    "report_to",
    "logging_dir",
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `clamu train` reads.

    Args:
        base_model (`str` or *dict*): a Hub id, a folder (relative to the recipe), or a configuration with a
            `model_type`.
        data (*dict*): where the rows are and how they become tasks, see `load_tasks`.
        arguments (*dict*): the settings, see `ClamuArguments`.
        revision (`str`, *optional*): of the base model on the Hub.
        dtype (`str`, *optional*): of the base model's weights, see `ClamuTrainer`.
        quantization_config (*dict*, *optional*): hold its linear layers in 4 or 8 bits, see `ClamuTrainer`.
        tokenizer (`str`, *optional*): a Hub id or folder; `"bytes"` is a built-in tokenizer of UTF-8 bytes for base
            models that are made from a configuration. By default the base model's own.
        peft_config (*dict*, *optional*): the PEFT adapter to finetune through, with its `peft_type`.
        peft_merging (`str`, *optional*): how adapters are added, see `ClamuTrainer`.
        card (*dict*): licence, languages, tags and more for the model card, see `CardSettings`.
        archive (`str`, *optional*): a folder (relative to the recipe), `hf://buckets/ORG/NAME` or `hf://ORG/NAME` for
            the integer vectors of the tasks, see `ClamuTrainer`.
        snapshot (`bool`): keep the encoded rows of the tasks beside the model, see `ClamuTrainer`.
        public_rows (`str` or *list* of `str`, *optional*): files of rows that belong to nobody (relative to the
            recipe), see `ClamuTrainer`.
        report_to (`str` or *list* of `str`, *optional*): trackers that are told of the build, see `ClamuTrainer`.
        logging_dir (`str`, *optional*): folder for those that write files (relative to the recipe).
        folder (`Path`): relative paths start here.

    Raises:
        RecipeError: if a key is missing, unknown or of the wrong kind.

    Example:

    ```python
    recipe = Recipe.load("examples/stdlib_text.yaml")
    model = recipe.trainer().train()
    ```
    """

    base_model: str | dict[str, Any]
    data: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    dtype: str | None = None
    quantization_config: dict[str, Any] | None = None
    tokenizer: str | None = None
    peft_config: dict[str, Any] | None = None
    peft_merging: str | None = None
    card: dict[str, Any] = field(default_factory=dict)
    archive: str | None = None
    snapshot: bool = False
    public_rows: str | list[str] | None = None
    report_to: str | list[str] | None = None
    logging_dir: str | None = None
    folder: Path = Path()

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file."""
        from hf_clamu.yaml_values import read_yaml

        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RecipeError(
                f"There is no recipe {path}. Give a YAML file with base_model, data and arguments."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe {path} cannot be read: {error}") from error
        values = read_yaml(text, f"The recipe {path}")
        return cls.from_dict(values, folder=path.parent, where=str(path))

    @classmethod
    def from_dict(cls, values: Any, *, folder: Path | None = None, where: str = "The recipe") -> Recipe:
        """Check and take over YAML values."""
        if not isinstance(values, Mapping):
            raise RecipeError(f"{where} must be a mapping with base_model, data and arguments.")
        for key in values:
            if key not in _KEYS:
                raise RecipeError(f"{where} has the unknown key {key!r}.{hint_for(key, _KEYS)}")
        for key in ("base_model", "data"):
            if not values.get(key):
                raise RecipeError(f"{where} lacks {key!r}. It needs base_model and data, and may have arguments.")
        if not isinstance(values["base_model"], (str, Mapping)):
            raise RecipeError(f"{where}: base_model must be a Hub id, a folder or a configuration (a mapping).")
        for key in ("revision", "dtype", "tokenizer", "peft_merging", "archive", "logging_dir"):
            if not isinstance(values.get(key), (str, type(None))):
                raise RecipeError(f"{where}: {key} must be a string, got {values[key]!r}; put it in quotes.")
        for key in ("data", "arguments", "quantization_config", "peft_config", "card"):
            if not isinstance(values.get(key) or {}, Mapping):
                raise RecipeError(f"{where}: {key} must be a mapping, got {values[key]!r}.")
        if not isinstance(values.get("snapshot", False), bool):
            raise RecipeError(f"{where}: snapshot must be true or false, got {values['snapshot']!r}.")
        for key, what in (("public_rows", "path"), ("report_to", "tracker")):
            names = values.get(key)
            listed = names if isinstance(names, list) else [names]
            if names is not None and not (listed and all(isinstance(name, str) and name for name in listed)):
                raise RecipeError(f"{where}: {key} must be a {what} or a list of {what}s, got {names!r}.")
        base = values["base_model"]
        return cls(
            base_model=base if isinstance(base, str) else dict(base),
            data=dict(values["data"]),
            arguments=dict(values.get("arguments") or {}),
            revision=values.get("revision"),
            dtype=values.get("dtype"),
            quantization_config=dict(values["quantization_config"]) if values.get("quantization_config") else None,
            tokenizer=values.get("tokenizer"),
            peft_config=dict(values["peft_config"]) if values.get("peft_config") else None,
            peft_merging=values.get("peft_merging"),
            card=dict(values.get("card") or {}),
            archive=values.get("archive"),
            snapshot=values.get("snapshot", False),
            public_rows=values.get("public_rows"),
            report_to=values.get("report_to"),
            logging_dir=values.get("logging_dir"),
            folder=folder or Path(),
        )

    def clamu_arguments(self) -> ClamuArguments:
        """Return the settings."""
        from hf_clamu.merging import ClamuArguments

        return ClamuArguments.from_dict(self.arguments)

    def with_preset(self, preset: str | None) -> Recipe:
        """Return the recipe under a preset: instead of its own one, localization, clustering and scaling.

        Args:
            preset (`str`, *optional*): a name; without one the recipe stays as it is.
        """
        from hf_clamu.merging import METHOD_SETTINGS

        if preset is None:
            return self
        others = {name: value for name, value in self.arguments.items() if name not in METHOD_SETTINGS}
        return replace(self, arguments={**others, "preset": preset})

    def tasks(self, data: DataFiles | None = None) -> TaskDataset:
        """Load the tasks; `data` replaces the files that the recipe names."""
        from hf_clamu.tasks import load_tasks

        return load_tasks(self.data, base_dir=self.folder, data=data)

    def trainer(self, data: DataFiles | None = None, **options: Any) -> ClamuTrainer:
        """Return the trainer of this recipe."""
        from hf_clamu.trainer import ClamuTrainer

        arguments = self.clamu_arguments()  # first: a wrong setting should show before data are read
        tasks = self.tasks(data)
        return ClamuTrainer(
            self.base(),
            tasks,
            arguments,
            processing_class=self.processor(tasks.spec.kind),
            revision=self.revision,
            dtype=self.dtype,
            quantization_config=self.quantization_config,
            peft_config=self.peft_config,
            peft_merging=self.peft_merging,
            card=self.card,
            **{
                "archive_dir": self.archive_place(),
                "snapshot": self.snapshot,
                "public_rows": self.public_files(),
                "report_to": self.report_to,
                "logging_dir": None if self.logging_dir is None else self.folder / self.logging_dir,
                **options,
            },
        )

    def public_files(self) -> list[Path] | None:
        """Return where the public rows are, as `ClamuTrainer` takes them."""
        names = [self.public_rows] if isinstance(self.public_rows, str) else self.public_rows
        return None if names is None else [self.folder / name for name in names]

    def archive_place(self) -> str | Path | None:
        """Return where the archive is, as `ClamuTrainer` takes it."""
        if self.archive is None or self.archive.startswith("hf://"):
            return self.archive
        return self.folder / self.archive

    def base(self) -> str | dict[str, Any]:
        """Return the base model as `ClamuTrainer` takes it: a Hub id, a folder or a configuration."""
        base = self.base_model
        if isinstance(base, str):
            return str(self.folder / base) if (self.folder / base).is_dir() else base
        if self.tokenizer != "bytes":
            return base
        from hf_clamu.base_models.byte_tokenizer import byte_tokenizer

        tokenizer = byte_tokenizer()
        end = tokenizer.eos_token_id
        return {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, **base}

    def processor(self, kind: str) -> Any:
        """Return the tokenizer that the recipe names; None if it leaves that to the base model.

        Raises:
            RecipeError: if it cannot be loaded.
        """
        if self.tokenizer is None:
            return None
        from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
        from hf_clamu.base_models.processors import load_processor

        if self.tokenizer == "bytes":
            return byte_tokenizer()
        name = str(self.folder / self.tokenizer) if (self.folder / self.tokenizer).is_dir() else self.tokenizer
        processor = load_processor(name, kind)
        if processor is None:
            raise RecipeError(
                f"The tokenizer {self.tokenizer!r} could not be loaded. Give a Hub id, a folder or 'bytes'."
            )
        return processor
