"""The same input through base, global model, clusters and tasks, as the model is and as it was before requests."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.errors import RecipeError, TaskNotFoundError
from hf_clamu.exact import sha256_file
from hf_clamu.hub.pull import is_repo_id
from hf_clamu.models.modeling_clamu import ClamuModel
from hf_clamu.operations.lifecycle.receipts import lineage, read_receipts
from hf_clamu.operations.lifecycle.recovery import saved_state_digest
from hf_clamu.proofs.saved import folder_of
from hf_clamu.serving.inputs import image_row, text_row
from hf_clamu.serving.prediction import predict_by_routes
from hf_clamu.serving.routing import Route
from hf_clamu.tasks import TaskSpec

__all__ = ["TRY_COLUMNS", "Tryout", "earlier_states", "takes_images", "why_nothing_earlier"]

TRY_COLUMNS = ("state", "served by", "answer", "score")
_MOST_CHARACTERS = 20_000  # of a text
_MOST_BYTES, _MOST_PIXELS = 20 << 20, 40_000_000  # of an image
_MOST_CLUSTERS = 100
_MOST_PLACES = 50  # that are looked at for earlier states
_MOST_MODELS = 2  # that are held in memory


def takes_images(spec: TaskSpec) -> bool:
    """Whether the inputs of a model are images; otherwise they are texts."""
    return spec.image_column is not None


def earlier_states(source: str, receipts: Path) -> list[str]:
    """Return the names of earlier states of a model that are at hand, the last ones first.

    Of a folder these are folders beside it that hold a state which receipts lead from (a copy, or the source of
    `--output`); of a Hub id the commits before the present one, as `ORG/NAME@COMMIT`.

    Args:
        source (`str`): folder or Hub id.
        receipts (`Path`): folder of the receipts; there may be none.
    """
    return _earlier_commits(source) if is_repo_id(source) else list(_earlier_folders(Path(source), receipts))


def why_nothing_earlier(source: str) -> str:
    """Return why no earlier state is at hand."""
    if is_repo_id(source):
        return "The Hub has no earlier commit of this model: its history was erased, or nothing was changed."
    return (
        "No earlier state of this model is beside it. Where one is needed, copy the folder before a request, or write "
        "the result elsewhere (--output)."
    )


def _earlier_folders(folder: Path, receipts: Path) -> Iterator[str]:
    now = saved_state_digest(folder)
    if now is None or not receipts.is_dir():
        return
    before = [receipt["digests"]["before"] for receipt in lineage(read_receipts(receipts), now).values()]
    beside = sorted(path.parent for path in folder.resolve().parent.glob(f"*/{LEDGER_NAME}"))[:_MOST_PLACES]
    found = {str(path): saved_state_digest(path) for path in beside if not path.is_symlink()}
    for state in dict.fromkeys(before):
        yield from [name for name, digest in found.items() if digest == state]


def _earlier_commits(repo_id: str) -> list[str]:
    from huggingface_hub import HfApi

    from hf_clamu.hub.errors import translate_hub_errors

    with translate_hub_errors(f"list the commits of {repo_id}"):
        commits = HfApi().list_repo_commits(repo_id)
    return [f"{repo_id}@{commit.commit_id}" for commit in commits[1 : _MOST_PLACES + 1]]


@dataclass(kw_only=True)
class Tryout:
    """Tries inputs on a model; what it has loaded it keeps for the next input, until the model changes.

    Args:
        source (`str`): folder or Hub id.
        receipts (`Path`): folder of the receipts.
        task_id_key (`str`, *optional*): the key of the ledger's ids, if they are keyed.
    """

    source: str
    receipts: Path
    task_id_key: str | None = field(default=None, repr=False)
    _models: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def rows(
        self,
        *,
        text: str | None = None,
        image: bytes | None = None,
        task: str | None = None,
        before: str | None = None,
        max_new_tokens: int = 64,
    ) -> list[tuple[str, ...]]:
        """Return a row of texts for each answer, in the order of `TRY_COLUMNS`.

        Args:
            text (`str`, *optional*): the input, of a model that reads texts.
            image (`bytes`, *optional*): the content of an image file, of a model that reads images.
            task (`str`, *optional*): id of a task; the cluster that serves it gets a row. A task that is not merged
                is served by the global model.
            before (`str`, *optional*): one of `earlier_states`; its answers are added.
            max_new_tokens (`int`): length of a generated completion.

        Raises:
            RecipeError: if the input is missing, too large or of the wrong kind, or there is no such earlier state.
        """
        if before is not None and before not in earlier_states(self.source, self.receipts):
            raise RecipeError("There is no such earlier state of this model. Choose one of those that are listed.")
        found: list[tuple[str, ...]] = []
        with self._lock:  # loaded once, and one input after the other
            for when, name in (("now", self.source), ("before", before)):
                if name is not None:
                    found += self._answers(when, self._loaded(name), text, image, task, max_new_tokens)
        return found

    def _answers(
        self, when: str, model: Any, text: str | None, image: bytes | None, task: str | None, max_new_tokens: int
    ) -> list[tuple[str, ...]]:
        row = _row(model.merged.checkpoint.task_spec, text, image)
        ways = _ways(model, task)
        answers = predict_by_routes(model, [row] * len(ways), list(ways.values()), max_new_tokens=max_new_tokens)
        return [(when, way, *_told(answer)) for way, answer in zip(ways, answers, strict=True)]

    def _loaded(self, name: str) -> Any:
        """Return a model as its files are at the moment."""
        folder = folder_of(name)
        key = (name, sha256_file(folder / LEDGER_NAME) if (folder / LEDGER_NAME).is_file() else "")
        if key not in self._models:
            for known in [one for one in self._models if one[0] == name]:
                del self._models[known]
            while len(self._models) >= _MOST_MODELS:
                del self._models[next(iter(self._models))]
            self._models[key] = ClamuModel.from_pretrained(folder, task_id_key=self.task_id_key)
        return self._models[key]


def _ways(model: Any, task: str | None) -> dict[str, Route]:
    """Return by what an input is answered, by what that is called."""
    names = list(model.cluster_names)[:_MOST_CLUSTERS]
    ways: dict[str, Route] = {"base model": "base", "global model": "global"}
    ways |= {f"cluster {number} ({name})": number for number, name in enumerate(names)}
    if task:
        try:
            number = int(model.cluster_of(task))
            ways[f"task {task} (cluster {number})"] = number
        except TaskNotFoundError:
            ways[f"task {task} (not merged: global model)"] = "global"
    return ways


def _row(spec: TaskSpec, text: str | None, image: bytes | None) -> dict[str, Any]:
    if takes_images(spec):
        if not image:
            raise RecipeError("This model reads images. Give an image file.")
        if len(image) > _MOST_BYTES:
            raise RecipeError(f"The image has {len(image):,} bytes, and at most {_MOST_BYTES:,} are taken.")
        return image_row(spec, io.BytesIO(image), name="the file", most_pixels=_MOST_PIXELS)
    if text is None or not text.strip():
        raise RecipeError("This model reads texts. Write one.")
    if len(text) > _MOST_CHARACTERS:
        raise RecipeError(f"The text has {len(text):,} characters, and at most {_MOST_CHARACTERS:,} are taken.")
    return text_row(spec, text)


def _told(answer: Mapping[str, Any]) -> Sequence[str]:
    """Return answer and score as texts."""
    if "completion" in answer:
        return str(answer["completion"]), ""
    if "tags" in answer:
        return " ".join(tag or "-" for tag in answer["tags"]), ""
    return str(answer["label"]), f"{answer['score']:.3f}"
