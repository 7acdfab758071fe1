"""What a scale runs: settings (data, base model, finetuning) and experiments (which cells they measure)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_clamu import ClamuArguments
from hf_clamu.errors import RecipeError
from hf_clamu.exact import digest_json
from hf_clamu.merging import PRESETS
from hf_clamu.tasks.spec import refuse_unknown_keys

__all__ = ["CLUSTERED", "CLUSTERING", "METHODS", "SCALES", "Cell", "Experiment", "Scale", "Setting"]

_FOLDER = Path(__file__).with_name("scales")
SCALES = ("smoke", "local", "small", "paper")

# Every method, in the order of the tables, and whether what it gives depends on the clusters.
METHODS = {
    "zero_shot": False,
    "local": False,
    "central": False,
    "sisa": True,
    "average": False,
    "task_arithmetic": False,
    "ties": False,
    "cluster_merged": True,
    "emr": True,
    "tall": True,
    "clamu": True,
    "clamu_tuned": True,
    "lora_1": True,
    "lora_2": True,
    "lora_5": True,
    "sift": False,
    "sift_union": True,
}
CLUSTERED = tuple(method for method, is_clustered in METHODS.items() if is_clustered)
# How tasks are clustered where a table does not say otherwise: as the library does.
CLUSTERING = str(PRESETS["clusters"].settings["clustering"])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the paper: tasks, the model that they finetune, and how.

    Args:
        title (`str`): for tables and figures.
        data (*mapping*): `source` names a function of `sources.py`; the rest are its arguments.
        base (`str` or *mapping*): a Hub id or folder, or `source` names a function of `bases.py`.
        arguments (*mapping*): `ClamuArguments`; how each task is finetuned and each mask learned.
        metric (`str`): `"accuracy"`, `"answer_probability"`, or `"label_accuracy"` (a language model answers with the
            name of a label).
        of_paper (`str`): what the paper has in its place.
        tokenizer (`str`, *optional*): a Hub id, a folder or `"bytes"`; by default the base model's own.
        seeds (*tuple* of `int`, *optional*): what it is measured under, if not the seeds of the scale.
    """

    title: str
    data: Mapping[str, Any]
    base: Any
    arguments: Mapping[str, Any]
    metric: str = "accuracy"
    of_paper: str = ""
    tokenizer: str | None = None
    seeds: tuple[int, ...] = ()

    def settings(self, seed: int) -> ClamuArguments:
        """Return the settings under a seed: those of the preset `clusters`, where the setting has none of its own.

        Vectors are as fine as the paper's, in float32; `examples.grid` compares with the library's default.
        """
        given = {"preset": "clusters", "score_validation": False, "fraction_bits": 28, **self.arguments, "seed": seed}
        return ClamuArguments.from_dict(given)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that a result depends on."""
        values = asdict(self)
        del values["title"], values["of_paper"], values["seeds"]
        return digest_json([values, dict(PRESETS["clusters"].settings)])


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One number of a table: a method on some tasks of a setting.

    Unlearning is exact, so what a method gives after forgetting is what it gives on the tasks that are left.

    Args:
        setting (`str`): its name in the scale.
        seed (`int`): of the data's cut, the finetuning and the clusters.
        num_tasks (`int`): how many tasks are merged: the first of a seeded order.
        clustering (`str`): how they are grouped; `""` where it does not matter.
        num_clusters (`int`): K; 0 where it does not matter.
        method (`str`): one of `METHODS`.
    """

    setting: str
    seed: int
    num_tasks: int
    clustering: str
    num_clusters: int
    method: str

    @classmethod
    def of(cls, setting: str, seed: int, num_tasks: int, clustering: str, num_clusters: int, method: str) -> Cell:
        """Return a cell without what does not matter to its method."""
        is_clustered = METHODS[method]
        # Shards are drawn at random, whatever clusters the others have.
        kind = "random" if method == "sisa" else clustering
        return cls(
            setting=setting,
            seed=seed,
            num_tasks=num_tasks,
            clustering=kind if is_clustered else "",
            # More clusters than tasks are as many as there are tasks.
            num_clusters=min(num_clusters, num_tasks) if is_clustered else 0,
            method=method,
        )

    @property
    def key(self) -> str:
        """The cell's name among the results of its setting and seed."""
        return f"{self.num_tasks}/{self.clustering or '-'}/{self.num_clusters}/{self.method}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Which cells a table or figure needs: every combination of its lists.

    Args:
        settings (*tuple* of `str`): names of settings.
        num_tasks (*tuple* of `int`): numbers of merged tasks.
        methods (*tuple* of `str`): of `METHODS`.
        clusterings (*tuple* of `str`): see `ClamuArguments.clustering`.
        num_clusters (*tuple* of `int`): values of K.
        requests (`int`): for `cost`: how many tasks are forgotten, one after the other.
        in_all (`bool`): whether `all` measures it; what takes long or needs files has to be named.
    """

    settings: tuple[str, ...]
    num_tasks: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    clusterings: tuple[str, ...] = (CLUSTERING,)
    num_clusters: tuple[int, ...] = ()
    requests: int = 0
    in_all: bool = True


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A recipe for all tables and figures.

    Args:
        name (`str`): its name.
        about (`str`): what it is, for the page.
        seeds (*tuple* of `int`): every cell is measured under each, unless its setting has seeds of its own.
        settings (*dict* of `str` to `Setting`): by name.
        experiments (*dict* of `str` to `Experiment`): by name of the table or figure.
        remarks (*dict* of `str` to `str`): why an ordering of the paper does not hold here, by the name of the claim.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    settings: dict[str, Setting]
    experiments: dict[str, Experiment]
    remarks: dict[str, str] = field(default_factory=dict)

    def seeds_of(self, setting: str) -> tuple[int, ...]:
        """Return the seeds that a setting is measured under."""
        return self.settings[setting].seeds or self.seeds

    def cells(self, experiment: Experiment) -> Iterator[Cell]:
        """Return the cells of an experiment under every seed, each once."""
        lists = (experiment.num_tasks, experiment.clusterings, experiment.num_clusters, experiment.methods)
        found = [
            Cell.of(setting, seed, *values)
            for setting in experiment.settings
            for seed in self.seeds_of(setting)
            for values in itertools.product(*lists)
        ]
        yield from dict.fromkeys(found)

    @classmethod
    def load(cls, name: str) -> Scale:
        """Read a scale's recipe.

        Args:
            name (`str`): one of `SCALES`, or a path of a YAML file.

        Raises:
            RecipeError: if a name in it is unknown.
        """
        path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
        if not path.is_file():
            raise RecipeError(f"There is no scale {name!r}. Choose one of {', '.join(SCALES)}, or give a YAML file.")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        refuse_unknown_keys(values, ("about", "seeds", "settings", "experiments", "remarks"), where=f"{path}")
        settings = {}
        for title, given in values["settings"].items():
            refuse_unknown_keys(given, Setting.__dataclass_fields__, where=f"setting {title!r} of {path}")
            settings[title] = Setting(**{**given, "seeds": tuple(given.get("seeds", ()))})
        experiments = {}
        for title, given in values["experiments"].items():
            refuse_unknown_keys(given, Experiment.__dataclass_fields__, where=f"experiment {title!r} of {path}")
            found = Experiment(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})
            for kind, used, known in (("setting", found.settings, settings), ("method", found.methods, METHODS)):
                unknown = [one for one in used if one not in known]
                if unknown:
                    raise RecipeError(f"experiment {title!r} of {path}: unknown {kind} {unknown[0]!r}.")
            experiments[title] = found
        return cls(
            name=path.stem,
            about=values["about"],
            seeds=tuple(values["seeds"]),
            settings=settings,
            experiments=experiments,
            remarks=values.get("remarks") or {},
        )
