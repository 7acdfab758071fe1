"""One sequence: a build, some requests, and the comparison of what is left with a build from scratch."""

from __future__ import annotations

import collections
import contextlib
import random
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_clamu import ClamuArguments, ClamuError, ClamuModel, ClamuTrainer
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.merging import METHOD_SETTINGS
from hf_clamu.operations.snapshots import snapshot_names
from hf_clamu.tasks import keyed_id, traits_of
from hf_clamu.training import silent_progress
from tests.differential.bases import ARCHITECTURES
from tests.differential.checks import compare, counted_steps, exported_is_live, masked_is_live, without_names
from tests.differential.data import Data
from tests.differential.space import Configuration

__all__ = ["Outcome", "Sequence"]

_KEY = "a secret, é"
_LIVE = ("frozen_a", "parameters")


_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
_QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": _NF4,
    "nf4 double": {**_NF4, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
# Layers before a head that a base model's files do not have.
_DRAWN = ("classification_head", "pre_classifier", "pooler", "head")


@dataclass
class Outcome:
    """What came of a sequence.

    Args:
        seed (`int`): of the sequence.
        configuration (*dict*): that was drawn.
        steps (*list* of `str`): what was done.
        refusals (*list* of `str`): the classes and messages of refusals before any training.
        failures (*list* of `str`): what went wrong.
        num_comparisons, num_files, num_different (`int`): folders and files compared, and bytes that differ.
        did (*Counter* of `str`): requests and checks.
    """

    seed: int
    configuration: Configuration
    steps: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_comparisons: int = 0
    num_files: int = 0
    num_different: int = 0
    did: collections.Counter[str] = field(default_factory=collections.Counter)


class _FailedError(Exception):
    """Something is not as promised."""


class _RefusedError(Exception):
    """A configuration or request was refused, before any training."""


class Sequence:
    """A seeded sequence.

    Args:
        seed (`int`): decides everything.
        configuration (*dict*): from `draw(seed)`, perhaps changed by hand.
        folder (`Path`): an empty one.
    """

    def __init__(self, seed: int, configuration: Configuration, folder: Path) -> None:
        self._chance = random.Random(f"requests {seed}")
        self._seed = seed
        self._configuration = configuration
        self._folder = folder
        self._data = Data(configuration, seed)
        self._key = _KEY if configuration["keyed"] else None
        self._scratches: dict[tuple[tuple[str, int], ...], Path] = {}
        self._merged: dict[str, int] = {}
        self._revisions: dict[str, int] = {}
        self._model: Any = None
        self._place: Path | None = None
        self._is_loaded = False
        # What a refused request began stays in its journal, for when it is repeated.
        self._has_refused = False
        self.outcome = Outcome(seed=seed, configuration=configuration)

    def run(self) -> Outcome:
        """Carry it out; failures are in the outcome."""
        try:
            with counted_steps() as self._steps, self._snapshot_key():
                self._run()
        except _RefusedError:
            pass
        except _FailedError as error:
            self._failed(str(error))
        except Exception as error:
            # The lines of others say little: theirs are in the hundreds.
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[:-9:-1])
            self._failed(f"{type(error).__name__}: {error} ({where})")
        return self.outcome

    @contextlib.contextmanager
    def _snapshot_key(self) -> Iterator[None]:
        key = "11" * 32 if self._configuration["snapshot"] == "encrypted" else None
        with pytest.MonkeyPatch.context() as environment:
            if key is not None:
                environment.setenv("CLAMU_SNAPSHOT_KEY", key)
            yield

    def _failed(self, message: str) -> None:
        if message not in self.outcome.failures:
            self.outcome.failures.append(message)

    # -- the whole -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        chance = self._chance
        self._merged = dict.fromkeys(self._data.task_ids[: self._configuration["num_tasks"]], 0)
        self._model = self._guarded("train", lambda: self._trained(self._merged, is_scratch=False))
        self._check_training()
        if chance.random() < 0.7:
            self._save()
        for _ in range(self._configuration["num_requests"]):
            with contextlib.suppress(_RefusedError):
                self._request()
            self._check_state()
            if chance.random() < 0.5:
                self._serve()
            if chance.random() < 0.5:
                self._save()
        self._save(compared=True)
        self._check_files()

    def _guarded(self, what: str, action: Callable[[], Any]) -> Any:
        """Do something that may be refused, as long as nothing was trained yet."""
        before = self._steps[0]
        state = None if self._model is None else self._model.state_digest()
        try:
            return action()
        except ClamuError as error:
            if self._steps[0] > before:
                raise _FailedError(
                    f"{what} was refused after training had begun: {type(error).__name__}: {error}"
                ) from error
            if state is not None and self._model.state_digest() != state:
                raise _FailedError(f"{what} was refused, and changed the model: {error}") from error
            self.outcome.refusals.append(f"{what}: {type(error).__name__}: {without_names(str(error))}")
            self._has_refused = True
            raise _RefusedError from error

    # -- building ------------------------------------------------------------------------------------------------

    def _trained(self, revisions: Mapping[str, int], *, is_scratch: bool) -> Any:
        found = self._configuration
        options: dict[str, Any] = {}
        if not is_scratch:
            options = self._places(may_leave_out=False)
            options.pop("receipt_dir")
            options["archive_dir"] = options.pop("archive", None)
            options["snapshot"] = found["snapshot"] != "none"
        if found["clustering"] == "public_rows":
            options["public_rows"] = self._data.public_rows(self._chance.randrange(1000))
        self.outcome.steps.append(f"build of {self._short(revisions)} {_shown(options)}")
        return ClamuTrainer(
            self._base(),
            self._data.tasks(revisions, self._chance.randrange(1000)),
            self._arguments(),
            processing_class=None if found["kind"] == "image" else byte_tokenizer(),
            dtype="bfloat16" if "bfloat16" in found["precision"] else None,
            task_id_key=self._key,
            peft_config=found["peft"],
            quantization_config=self._quantization(),
            peft_merging=found["peft_merging"],
            progress=silent_progress,
            **options,
        ).train()

    def _arguments(self) -> ClamuArguments:
        found = self._configuration
        names: tuple[str, ...] = (
            "localization",
            "clustering",
            "num_clusters",
            "scaling",
            "global_scaling",
            "keep_features",
            "mask_factors",
            "mask_scaling_schedule",
            "mask_learning_rate",
            "mask_gradient_norm",
            "fraction_bits",
            "integer_bits",
            "linear_digest",
            "score_validation",
            "freeze",
        )
        if found["preset"] is not None:
            names = ("preset", *(name for name in names if name not in METHOD_SETTINGS))
        bf16 = found["precision"].endswith("bf16")
        return ClamuArguments(**{name: found[name] for name in names}, **found["training"], bf16=bf16, num_threads=1)

    def _quantization(self) -> dict[str, Any] | None:
        found = self._configuration
        if found["quantization"] is None:
            return None
        # What is trained whole, or drawn when the base model is loaded, stays in whole weights.
        whole = [*ARCHITECTURES[found["architecture"]].heads.values(), *_DRAWN]
        return {**_QUANTIZATIONS[found["quantization"]], "llm_int8_skip_modules": whole}

    def _base(self) -> Any:
        found = self._configuration
        config = dict(ARCHITECTURES[found["architecture"]].config)
        if found["tied"] != "default":
            config["tie_word_embeddings"] = found["tied"]
        if found["base"] == "config":
            return config
        folder = self._folder / "base"
        if found["base"] == "folder" and folder.exists():
            return folder
        labels = self._data.columns.get("label_names", ())
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        made = transformers.AutoConfig.for_model(**config, **(names if labels else {}))
        spec = self._data.tasks(dict.fromkeys(self._data.task_ids, 0), 0).spec
        auto = getattr(transformers, traits_of(spec.kind).auto_class)
        if found["base"] == "folder" and self._seed % 2:
            auto = transformers.AutoModel  # the head is drawn when it is loaded
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            model = auto.from_config(made)
        if found["base"] == "memory":
            return model
        model.save_pretrained(folder)
        return folder

    def _check_training(self) -> None:
        """Check that what is trained has learned something."""
        found = self._configuration
        if found["training"]["learning_rate"] < 0.01 or "bfloat16" in found["precision"]:
            return  # a small step may be lost in rounding
        if found["freeze"]:
            return  # what starts at zero may be what is frozen
        ledger = self._model.ledger
        moved = {
            name
            for entry in ledger["tasks"].values()
            for name, bound in zip(ledger["parameters"], entry["bounds"], strict=True)
            if bound
        }
        names = [name for name in ledger["parameters"] if re.search(r"\.default(\.|$)|lora_|_default", name)]
        if names and not moved & set(names):
            self._failed(f"no task moved any parameter of the adapter: {', '.join(names[:4])}")
        if not moved:
            self._failed("no task moved any parameter")

    # -- requests ------------------------------------------------------------------------------------------------

    def _places(self, *, may_leave_out: bool = True) -> dict[str, Any]:
        def takes(axis: str) -> bool:
            return self._configuration[axis] and not (may_leave_out and self._chance.random() < 0.15)

        options: dict[str, Any] = {"receipt_dir": self._folder / "receipts"}
        if takes("journal"):
            options["journal_dir"] = self._folder / "journal"
        if takes("archive"):
            options["archive"] = self._folder / "archive"
        return options

    def _given(self, revisions: Mapping[str, int]) -> Any:
        order = self._chance.randrange(1000)
        if self._configuration["data"] == "file" and revisions:
            return self._data.file(revisions, order, self._folder / f"rows-{order}.jsonl")
        return self._data.tasks(revisions, order)

    def _request(self) -> None:
        chance, merged = self._chance, self._merged
        absent = [one for one in self._data.task_ids if one not in merged]
        kinds = ["unmerge one", "unmerge many", "unmerge all", "requests", "update", "rebuild", "update nothing"]
        weights = [5, 4, 1, 2, 3, 2, 0.5]
        if not merged:
            kinds, weights = [], []
        if absent:
            kinds.append("add")
            weights.append(6)
        kind = chance.choices(kinds, weights)[0]
        options = self._places()
        some = [] if not merged else chance.sample(sorted(merged), chance.randint(1, len(merged)))
        # What was trained with in this process is at hand, as long as the model is; a snapshot always.
        has_rows = not self._is_loaded or self._configuration["snapshot"] != "none"
        data = None if has_rows and chance.random() < 0.3 else self._given(merged)
        if kind == "add":
            new = {one: self._revisions.get(one, 0) for one in chance.sample(absent, chance.randint(1, len(absent)))}
            tasks, data = self._data.tasks(new, chance.randrange(1000)), data if merged else None
            action = lambda: self._model.add_task(tasks, data=data, **options)  # noqa: E731
            after = {**merged, **new}
        elif kind in ("update", "update nothing"):
            new = {one: merged[one] + (kind == "update") for one in some}
            tasks, after = self._data.tasks(new, chance.randrange(1000)), {**merged, **new}
            if chance.random() < 0.3:
                data = self._given({one: revision for one, revision in merged.items() if one not in new})
                options["on_mismatch"] = "rebuild"
            action = lambda: self._model.update_task(tasks, data=data, **options)  # noqa: E731
        else:
            gone = some[:1] if kind == "unmerge one" else sorted(merged) if kind == "unmerge all" else some
            after = {one: revision for one, revision in merged.items() if one not in gone}
            if kind == "rebuild":
                data, options["on_mismatch"] = self._given(after), "rebuild"
            if kind == "requests":
                cut = chance.randrange(len(gone))
                named = {name: part for name, part in (("req/1", gone[:cut]), ("req 2", gone[cut:])) if part}
                action = lambda: self._model.unmerge_requests(named, data=data, **options)  # noqa: E731
            else:
                what = gone[0] if len(gone) == 1 and chance.random() < 0.5 else gone
                action = lambda: self._model.unmerge_task(what, data=data, **options)  # noqa: E731
        change = f"{self._short(merged)} to {self._short(after)}"
        self.outcome.steps.append(f"{kind}: {change}, {_shown(options)}, data={type(data).__name__}")
        self._guarded(kind, action)
        self.outcome.did[kind] += 1
        self._merged = after
        self._revisions |= after

    def _short(self, revisions: Mapping[str, int]) -> str:
        """Name tasks by their places, with a sign for each revision."""
        places = self._data.task_ids
        return "[" + " ".join(f"{places.index(one)}{'+' * revisions[one]}" for one in revisions) + "]"

    def _check_state(self) -> None:
        expected = sorted(self._merged if self._key is None else (keyed_id(self._key, one) for one in self._merged))
        if list(self._model.tasks) != expected:
            raise _FailedError(f"the merged tasks are {self._model.tasks}, expected {expected}")

    def _serve(self) -> None:
        """Do what leaves no trace."""
        model, chance = self._model, self._chance
        if self._merged and model.clusters:
            model.set_cluster(chance.randrange(len(model.clusters)))
            model.set_cluster(task=chance.choice(sorted(self._merged)))
            number = chance.randrange(len(model.clusters))
            if model.set_cluster(model.cluster_names[number]).cluster != number:
                self._failed(f"the name {model.cluster_names[number]!r} selects another cluster than {number}")
        if chance.random() < 0.5:
            model.set_base()
        if model.processor is not None:
            model.processor(["a text", "b"], truncation=True, max_length=3, padding=True, return_tensors="pt")
        if any(module.training for module in model.modules()):
            self._failed("a module is in training mode")

    # -- files ---------------------------------------------------------------------------------------------------

    def _save(self, *, compared: bool = False) -> None:
        chance = self._chance
        if self._place is None or chance.random() < 0.4:
            self._place = self._folder / f"model-{len(self.outcome.steps)}"
        self.outcome.steps.append(f"save to {self._place.name}")
        # A model that was loaded knows it.
        size = None if self._is_loaded else self._configuration["max_shard_size"]
        self._model.save_pretrained(self._place, max_shard_size=size)
        left = [path.name for path in (self._folder / "journal").rglob("*") if path.suffix in (".part", ".json")]
        if left and not self._has_refused:
            self._failed(f"the journal still has {left} after the model was saved")
        if compared or chance.random() < 0.2:
            self._compare(self._place)
        if chance.random() < 0.6:
            self.outcome.steps.append("load")
            self._model = ClamuModel.from_pretrained(self._place, task_id_key=self._key)
            self._is_loaded = True
            if any(module.training for module in self._model.modules()):
                self._failed("a module is in training mode after loading")

    def _compare(self, place: Path) -> None:
        revisions = tuple(sorted(self._merged.items()))
        if revisions not in self._scratches:
            listed = list(revisions)
            self._chance.shuffle(listed)
            scratch = self._folder / f"scratch-{len(self._scratches)}"
            try:
                model = self._trained(dict(listed), is_scratch=True)
                model.save_pretrained(scratch, max_shard_size=self._configuration["max_shard_size"])
            except ClamuError as error:
                raise _FailedError(f"the build of what is left is refused: {type(error).__name__}: {error}") from error
            self._scratches[revisions] = scratch
        count, odd = compare(place, self._scratches[revisions])
        self._compare_rows(place)
        self.outcome.num_comparisons += 1
        self.outcome.num_files += count
        self.outcome.num_different += sum(odd.values())
        if odd:
            raise _FailedError(f"bytes that differ from a build of {self._short(dict(revisions))}, by file: {odd}")

    def _compare_rows(self, place: Path) -> None:
        """Check that a snapshot has the rows of the merged tasks, and of no others."""
        rows = Path(f"{place}.snapshot")
        names = {path.name.split(".")[0] for path in rows.iterdir()} if rows.exists() else set()
        kept = set()
        if self._configuration["snapshot"] != "none":
            kept = set(snapshot_names(self._model.merged.checkpoint.state.records).values())
        if names != kept:
            self._failed(f"the snapshot has {len(names)} tasks, {len(names - kept)} of them are not merged")

    def _check_files(self) -> None:
        model, chance, place = self._model, self._chance, self._place
        assert place is not None
        masked = self._configuration["localization"] != "global" and model.clusters
        if chance.random() < 0.4:
            self.outcome.did["verify"] += 1
            report = model.verify(data=self._given(self._merged) if self._merged else None)
            if not report.identical:
                self._failed(f"verify: {report.differences} differ")
        cluster = chance.randrange(len(model.clusters)) if model.clusters else None
        for merge in (True, False):
            if chance.random() < 0.4 and (merge or self._configuration["peft_merging"] in _LIVE):
                name = f"export{'' if merge else ' an adapter'}"
                folder = self._folder / f"export-{merge}"
                self._check(name, exported_is_live, model, cluster, folder, place, merge=merge)
        if masked and chance.random() < 0.4:
            self._check("mask adapter", masked_is_live, model, cluster, place)

    def _check(self, name: str, check: Callable[..., str | None], *args: Any, **options: Any) -> None:
        with contextlib.suppress(_RefusedError):
            odd = self._guarded(name, lambda: check(*args, **options))
            self.outcome.did[name] += 1
            if odd:
                self._failed(f"{name}: {odd}")


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value.name if isinstance(value, Path) else value}" for key, value in options.items())
