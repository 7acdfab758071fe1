"""`ClamuTrainer`: from a base model and tasks to a merged model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import BaseModel
from hf_clamu.base_models.loading import load_base
from hf_clamu.base_models.quantization.settings import Quantization
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.errors import RecipeError
from hf_clamu.hub.archive import archive_at
from hf_clamu.merging import ClamuArguments, place_anchors, require_public_rows, warn_of_scores
from hf_clamu.models.modeling_clamu import attach_in_place
from hf_clamu.models.state import ModelContext
from hf_clamu.operations.build import build
from hf_clamu.operations.configuration import initial_config
from hf_clamu.operations.context import RunContext, build_environment
from hf_clamu.operations.resolution import resolved_arguments
from hf_clamu.resources import with_stages
from hf_clamu.storage import Journal, environment_key
from hf_clamu.tasks import PUBLIC_TASK, ModelLimits, TaskDataset, require_known_words
from hf_clamu.tasks import public_rows as read_public_rows
from hf_clamu.tasks.encoding import padding_id
from hf_clamu.training import (
    LiveModel,
    Progress,
    TrackerNames,
    Trackers,
    Workers,
    deterministic,
    example_features,
    move_model,
    prompts_of,
    undisturbed,
)

if TYPE_CHECKING:
    from hf_clamu.checkpoint.configuration_clamu import ClamuConfig
    from hf_clamu.models.modeling_clamu import ClamuPreTrainedModel

__all__ = ["ClamuTrainer", "progress_bars"]

# No rate and no unit: a loop goes over tasks, clusters or requests, and a user's own may go over anything.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
# What a terminal is taken for that does not say its size.
_USUAL_COLUMNS, _USUAL_LINES = 80, 24


class ClamuTrainer:
    """Builds a merged model: finetune each task, add, cluster, localize.

    Args:
        model (`str`, `Path`, *dict* or `transformers.PreTrainedModel`): the base model: a Hub id, a folder, a
            configuration (`{"model_type": "gpt2", "n_layer": 2}`, drawn at random from the seed), or a model in
            memory. A base that has no Hub id is saved inside the merged model.
        tasks (`TaskDataset`): the data of each task.
        args (`ClamuArguments`, *optional*): the settings.
        processing_class (*optional*): tokenizer or image processor; by default the base model's own.
        revision (`str`, *optional*): branch, tag or commit of the base model on the Hub.
        dtype (`str`, *optional*): type of the base weights, "float32" (the default) or "bfloat16"; tasks are finetuned
            and served in it. A model in memory keeps its own. (`ClamuArguments(bf16=True)` is autocast over fp32.)
        quantization_config (`transformers.BitsAndBytesConfig` or *dict*, *optional*): hold the linear layers of a base
            model from a folder or the Hub in 4 or 8 bits (QLoRA), such as `{"load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4"}`; for tasks that are finetuned through LoRA. Needs bitsandbytes.
        task_id_key (`str`, *optional*): a secret; the ledger then keeps keyed commitments (HMAC-SHA256) instead of the
            task ids, and later requests need the same key.
        peft_config (`peft.PeftConfig` or *dict*, *optional*): finetune each task through such an adapter instead of
            all weights; a dict names its `peft_type`. Heads of classifiers are trained, too, unless
            `modules_to_save` says otherwise. By default what the preset of the settings says: LoRA for `adapters`.
        peft_merging (`str`, *optional*): how tasks are added. `"frozen_a"` (LoRA; its default): `A` is drawn once,
            frozen and shared, `B` is added, so that the merged product is the sum of the tasks' products.
            `"parameters"` (the default of other methods): every parameter of the adapter is added. `"product"`: the
            adapter is merged into the base weights after each task, and those are added.
        card (`CardSettings` or *dict*, *optional*): licence, languages, data sets and tags of the model card, and
            whether it names the tasks.
        journal_dir (`str` or `Path`, *optional*): a folder for what is finished, so that an interrupted `train()` goes
            on from there when it is called again, with any number of processes. The first `save_pretrained` of the
            model removes it.
        archive_dir (`str` or `Path`, *optional*): a folder, or `"hf://buckets/ORG/NAME"` for a private bucket on the
            Hub, or `"hf://ORG/NAME"` for a private repository there, that keeps the integer vector of each task, so
            that requests need not retrain it (`unmerge_task(..., archive=...)`). It is not part of the model, which is
            the same without it; keep it private.
        snapshot (`bool`): keep the encoded rows of each task in the private folder `NAME.snapshot` beside the saved
            model, from its first `save_pretrained` on, so that requests need no other data. It is not part of the
            model and never pushed; a forgotten task's rows are destroyed with it. With the environment variable
            `CLAMU_SNAPSHOT_KEY` it is encrypted.
        public_rows (*optional*): rows that belong to nobody, in any form that `TaskDataset.from_dataset` takes, for
            `clustering="public_rows"`. Columns of owners, labels and completions are not read. The saved model keeps
            the anchors that are placed in them, so that no request needs the rows.
        report_to (`str`, `accelerate.tracking.GeneralTracker` or *list* of them, *optional*): trackers of Accelerate
            that are told the losses of each task, scores per cluster and seconds per stage, such as `"tensorboard"`,
            `"trackio"` or `"wandb"`. They are told the task ids, or under a `task_id_key` the commitments. The model
            is the same without.
        logging_dir (`str` or `Path`, *optional*): folder for trackers that write files; not inside the saved model.
        progress (`Progress`, *optional*): shows how far it is; by default bars on stderr.

    Example:

    ```python
    tasks = TaskDataset.from_dataset(dataset, task_column="user", text_column="text", label_column="label")
    trainer = ClamuTrainer("openai-community/gpt2", tasks, ClamuArguments(num_clusters=20, finetune_steps=20))
    model = trainer.train()
    model.save_pretrained("clamu-reddit")
    ```
    """

    def __init__(
        self,
        model: Any,
        tasks: TaskDataset,
        args: ClamuArguments | None = None,
        *,
        processing_class: Any = None,
        revision: str | None = None,
        dtype: str | None = None,
        quantization_config: Any = None,
        task_id_key: str | None = None,
        peft_config: Any = None,
        peft_merging: str | None = None,
        card: CardSettings | Mapping[str, Any] | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive_dir: str | Path | None = None,
        snapshot: bool = False,
        public_rows: Any = None,
        report_to: TrackerNames = None,
        logging_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(tasks, TaskDataset):
            raise RecipeError(
                f"tasks must be a TaskDataset, got {type(tasks).__name__}; make one with TaskDataset.from_dataset."
            )
        self.model = str(model) if isinstance(model, Path) else model
        self.tasks = tasks if task_id_key is None else tasks.with_key(task_id_key)
        self.task_id_key = task_id_key
        self.args = args or ClamuArguments()
        self.processing_class = processing_class
        self.revision = revision
        self.dtype = dtype
        self.space = PeftSpace.for_settings(self.args, peft_config, peft_merging)
        self.quantization = Quantization.of(quantization_config)
        if self.quantization is not None:
            self.quantization.require_adapter(self.space)
            self.quantization.require_weights(self.model)
            self.quantization.require_settings(portable=self.args.portable, bf16=self.args.bf16)
        self.card = card if isinstance(card, CardSettings) else CardSettings.from_dict(card or {})
        self.journal = Journal.at(journal_dir)
        self.archive = archive_at(archive_dir)
        if snapshot:
            environment_key()  # a key that cannot be used should show before anything is trained
        self.snapshot = snapshot
        require_public_rows(self.args, public_rows is not None)
        self.public_rows = None if public_rows is None else read_public_rows(public_rows, tasks.spec)
        self.trackers = Trackers(report_to, logging_dir)
        self.progress: Progress = progress or progress_bars
        self.seconds: dict[str, float] = {}
        self.scores: dict[str, float] | None = None

    @undisturbed()
    def train(self) -> ClamuPreTrainedModel:
        """Finetune, merge, cluster and localize, with all processes that a launcher started.

        `seconds` then holds how long each stage took without those inside it, and the `total`.
        `scores` then holds the mean scores on the validation examples, where there are any, of `"base"`, `"global"`
        and, with masks, `"own"`. A warning is logged if nothing was learned, or if masks gain nothing.

        Returns:
            `ClamuModel`: the global model selected; it keeps the data for later requests.

        Raises:
            IncompatibleBaseError: if the base model cannot be loaded or does not fit the tasks.
            TaskDataError: if the data of a task cannot be used.
            FixedPointOverflowError: if the finetuning of a task diverged.
            RecipeError: if a tracker does not start.
        """
        started = time.perf_counter()
        base = load_base(
            self.model,
            self.tasks.spec,
            num_labels=self.tasks.num_labels,
            processor=self.processing_class,
            revision=self.revision,
            run_seed=self.args.seed,
            space=self.space,
            dtype=self.dtype,
            quantization=self.quantization,
        )
        if base.quantization is not None:  # perhaps in its files already
            base.quantization.require_settings(portable=self.args.portable, bf16=self.args.bf16)
        context, config = self._context(base)
        loaded = time.perf_counter() - started
        with self.trackers.started(Workers.current()) as report:
            built = build(replace(context, report=report), config, fresh=base.fresh, source=self.tasks.source)
            state = built.checkpoint.state
            self.scores = None if state.scores is None else dict(state.scores["mean"])
            warn_of_scores(state.scores)
            kept = ModelContext(
                processor=base.processor,
                tasks=self.tasks,
                task_id_key=self.task_id_key,
                keeps_snapshot=self.snapshot,
            )
            started = time.perf_counter()
            attach_in_place(built.base, built.checkpoint, kept, journal=self.journal)
            self.seconds = with_stages(built.seconds, load=loaded, attach=time.perf_counter() - started)
            if report is not None:
                report.add_results(state.task_ids, state.cluster_names, state.scores, self.seconds)
        return built.base  # type: ignore[no-any-return]

    def _context(self, base: BaseModel) -> tuple[RunContext, ClamuConfig]:
        """Return what a build runs on, and its configuration before there is a state."""
        require_known_words(self.tasks, base.processor)
        arguments = resolved_arguments(self.args, base.model, base.space, announce=True)
        environment = build_environment(arguments, base.model)
        config = initial_config(base, self.tasks, arguments, self.card)
        with deterministic(environment.num_threads):
            anchors, config.public_rows = self._anchors(base)
        context = RunContext(
            base=base.model,
            base_digest=base.start_digest,
            processor=base.processor,
            tasks=self.tasks,
            arguments=arguments,
            environment=environment,
            progress=self.progress,
            space=base.space,
            journal=self.journal,
            archive=self.archive,
            anchors=anchors,
        )
        return context, config

    def _anchors(self, base: BaseModel) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """Place anchors in the public rows, if there are any; return them, and what is recorded of the rows."""
        if self.public_rows is None:
            return {}, None
        encoded = self.public_rows.encode(PUBLIC_TASK, base.processor, ModelLimits.of(base.model))
        device = Workers.current().device
        move_model(base.model, device)
        live = LiveModel(base.model, device=device, pad_token_id=padding_id(base.processor))
        features = example_features(live, prompts_of(encoded.train, self.tasks.spec.kind))
        anchors = place_anchors(features, self.args.num_clusters, self.args.seed)
        return anchors, {"digest": encoded.digest, "num_rows": len(encoded.train)}


def progress_bars(items: Any, description: str) -> Any:
    """Show a bar on stderr: how many of the items are done, the time so far and the time left."""
    # The Hub client's bars honour HF_HUB_DISABLE_PROGRESS_BARS.
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    return tqdm(items, desc=description, bar_format=_BAR, leave=False, **_missing_size())


def _missing_size() -> dict[str, int]:
    """Return a size for bars on a terminal that has none, where tqdm would print nothing at all."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # no terminal
        return {}
    if size.columns and size.lines:
        return {}
    return {"ncols": (size.columns or _USUAL_COLUMNS) - 1, "nrows": size.lines or _USUAL_LINES}
