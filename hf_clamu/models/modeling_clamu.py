"""`ClamuModel`: a transformers model that serves clusters and forgets tasks.

The class of a loaded model is a subclass of the base architecture that keeps its name, not a module around it: every
tool that takes a `PreTrainedModel` takes it. `ClamuModel` itself is the mixin that all of them share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_clamu.base_models.casting import move_to_device_map
from hf_clamu.base_models.identity import load_architecture
from hf_clamu.checkpoint.card.settings import CardSettings
from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.hub.archive import archive_at
from hf_clamu.merging import ClamuArguments
from hf_clamu.models.loading import HubOptions, check_loading_options, opened_model, require_castable, serving_dtype
from hf_clamu.models.mixins.proving import ProvingMixin
from hf_clamu.models.state import LiveState, MergedWeights, ModelContext, RequestLog
from hf_clamu.operations.local_merge import LocalMerge
from hf_clamu.signing import KeySource
from hf_clamu.storage import Journal
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import Progress, silent_progress, undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ClamuModel", "attach_in_place"]


class ClamuModel(ProvingMixin):
    """A merged model with clusters, ready for everything that takes a `transformers.PreTrainedModel`.

    Make one with `ClamuTrainer.train()` or load one with `ClamuModel.from_pretrained`. Fresh from either it is the
    global model; `set_cluster` brings a cluster's weights.

    Example:

    ```python
    model = ClamuModel.from_pretrained("clamu-reddit")
    model.set_cluster(task="user_17")
    model.unmerge_task("user_17")
    model.save_pretrained("clamu-reddit")
    ```
    """

    @classmethod
    @undisturbed()
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cluster: int | str | None = None,
        task: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        task_id_key: str | None = None,
        strict: bool = False,
        trusted_keys: Sequence[KeySource] | KeySource | None = None,
        **kwargs: Any,
    ) -> ClamuPreTrainedModel:
        """Load a saved model; digests of all files and of the base model are checked.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder that `save_pretrained` wrote, or a Hub id.
            cluster, task (`str` or `int`, *optional*): the cluster to select, or a task that it serves.
            revision, token, cache_dir (*optional*): branch, tag or commit; for private repos; of huggingface_hub.
            local_files_only, force_download (`bool`, *optional*): do not look at the Hub; fetch all files again.
            dtype (`str` or `torch.dtype`, *optional*): serve in this type; weights are computed in the type of the
                build and cast once. A model that was cast cannot unmerge.
            device_map (`str`, `torch.device`, `int` or *dict*, *optional*): where to serve; `"auto"`: a GPU if any.
            attn_implementation (`str`, *optional*): of the base architecture.
            task_id_key (`str`, *optional*): the key of keyed task ids; methods then take plain ids.
            strict (`bool`, *optional*): hash tensors as well as files, and unchanged files again.
            trusted_keys (*sequence* of `str`, `Path` or `bytes`, *optional*): PEM files of public keys, one of which
                must have signed the model, and its receipts where they are beside it (`clamu sign`).
            kwargs: what Auto classes and pipelines pass along and this has no use for.

        Returns:
            `ClamuModel`: an instance of the base architecture's class.

        Raises:
            CheckpointFormatError: if a file is missing, truncated, tampered with, or of a newer format.
            HubError: if the repo cannot be downloaded.
            IncompatibleBaseError, TaskNotFoundError: if the base model is another one, or no such task is merged.
            SignatureError: if the model or a receipt is not as a trusted key signed it.
        """
        # torch_dtype is its older name, which transformers still takes.
        serves_in = serving_dtype(kwargs.pop("torch_dtype", None) if dtype is None else dtype)
        check_loading_options(kwargs)
        options = HubOptions(
            revision=revision, token=token, cache_dir=cache_dir, offline=local_files_only, forced=force_download
        )
        name = str(pretrained_model_name_or_path)
        checks: dict[str, Any] = {"strict": strict, "trusted_keys": trusted_keys}
        with opened_model(name, options, attn_implementation, task_id_key=task_id_key, **checks) as loaded:
            model = loaded.base
            attach_in_place(model, loaded.checkpoint, loaded.context, dtype=serves_in, digests=loaded.digests)
        move_to_device_map(model, device_map)
        if cluster is not None or task is not None:
            model.set_cluster(cluster, task=task)
        return model  # type: ignore[no-any-return]

    @classmethod
    @undisturbed()
    def merge(
        cls,
        base: Any,
        checkpoints: Mapping[str, str | Path],
        args: ClamuArguments | None = None,
        *,
        tasks: TaskDataset | None = None,
        processing_class: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        task_id_key: str | None = None,
        card: CardSettings | Mapping[str, Any] | None = None,
        journal_dir: str | Path | Journal | None = None,
        archive_dir: str | Path | None = None,
        peft_merging: str | None = None,
        progress: Progress = silent_progress,
    ) -> ClamuPreTrainedModel:
        """Merge local models that were finetuned elsewhere; whatever their order, the bytes are the same.

        Args:
            base (`str`, `Path`, *dict* or `transformers.PreTrainedModel`): the model that they were finetuned from, as
                in `ClamuTrainer`; in float32, unless it is a model in memory.
            checkpoints (*mapping* of `str` to `str` or `Path`): task id to the folder of a plain transformers
                checkpoint (safetensors, of any floating-point type) or of an adapter that PEFT saved, or to a Hub id.
            args (`ClamuArguments`, *optional*): the settings; by default `clustering="task_vectors",
                localization="emr"` without data. Those of finetuning have no effect.
            tasks (`TaskDataset`, *optional*): the data of the tasks, for learned masks, clusters of features and
                held-out scores. Tasks without a checkpoint take no part.
            processing_class, revision, task_id_key, card, journal_dir, archive_dir, progress: as in `ClamuTrainer`.
            peft_merging (`str`, *optional*): adapters are added up by what they change in the weights (`"product"`) or
                as they are (`"frozen_a"`), by default where all are LoRA of one shape with the same factor A.
            token, cache_dir: as in `from_pretrained`.

        Returns:
            `ClamuModel`: the global model selected.

        Raises:
            CheckpointFormatError: if a file of a checkpoint is missing or damaged.
            FixedPointOverflowError: if a weight is NaN or infinite; the message names the task.
            IncompatibleBaseError: if a checkpoint does not fit the base; the message names file and parameter.
            RecipeError, TaskDataError: if a setting looks at data that are not given, or a folder or data are missing.
        """
        source: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        start = LocalMerge(
            base=base,
            checkpoints=checkpoints,
            arguments=args,
            tasks=tasks,
            processor=processing_class,
            task_id_key=task_id_key,
            **source,
            card=card if isinstance(card, CardSettings) else CardSettings.from_dict(card or {}),
            peft_merging=peft_merging,
        )
        journal = Journal.at(journal_dir)
        built, loaded = start.run(journal, archive_at(archive_dir), progress)
        context = ModelContext(processor=loaded.processor, tasks=built.tasks_with_rows, task_id_key=task_id_key)
        attach_in_place(built.base, built.checkpoint, context, journal=journal)
        return built.base  # type: ignore[no-any-return]


if TYPE_CHECKING:

    class ClamuPreTrainedModel(ClamuModel, PreTrainedModel):  # type: ignore[misc]
        """What a merged model is to a type checker: both a `ClamuModel` and a `PreTrainedModel`."""


def attach_in_place(
    model: Any,
    checkpoint: Checkpoint,
    context: ModelContext,
    *,
    journal: Journal | None = None,
    dtype: torch.dtype | None = None,
    digests: Mapping[str, bytes] | None = None,
) -> None:
    """Turn a base model into a `ClamuModel`, with the global model selected and in evaluation mode.

    Args:
        model (`transformers.PreTrainedModel`): holding the base weights.
        checkpoint (`Checkpoint`): what is merged.
        context (`ModelContext`): what goes with it.
        journal (`Journal`, *optional*): of the build, to be cleared at the first save.
        dtype (`torch.dtype`, *optional*): cast the live weights to this type.
        digests (*mapping* of `str` to `bytes`, *optional*): the SHA-256 of the parameters' values, where known.
    """
    require_castable(model, dtype)
    merged = MergedWeights.on(model, checkpoint, dtype=dtype, digests=digests)
    context.base_name = model.name_or_path
    model.__class__ = clamu_class(type(model))
    model._clamu = LiveState(merged, context, RequestLog(journals=[] if journal is None else [journal]))
    model.set_cluster(None)
    model.eval()  # the last step: the modules of an adapter start in training mode


_CLASSES: dict[type, type] = {}


def clamu_class(base: type) -> type:
    """Return the subclass of an architecture that serves clusters.

    It keeps the architecture's `__name__`, which pipelines look up in their lists.
    """
    if base not in _CLASSES:
        _CLASSES[base] = type(
            base.__name__,
            (ClamuModel, base),
            {
                "__module__": __name__,
                "__qualname__": f"Clamu{base.__name__}",
                "__doc__": base.__doc__,
                "_plain_class": base,
            },
        )
    return _CLASSES[base]


def __getattr__(name: str) -> type:
    # Unpickling and deepcopy find the dynamic classes by their qualified name.
    if name.startswith("Clamu"):
        try:
            return clamu_class(load_architecture(name.removeprefix("Clamu")))
        except IncompatibleBaseError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
