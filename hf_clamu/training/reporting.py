"""What Accelerate's trackers (TensorBoard, Weights & Biases, Trackio, ...) are told of a build.

Nothing of it reaches the saved model, and no bit of training depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from hf_clamu.errors import RecipeError, first_line
from hf_clamu.known_names import hint_for
from hf_clamu.training.workers import Workers

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["BuildReport", "LossReport", "Trackers", "TrackerNames"]

_logger = logging.getLogger(__name__)

# What trackers call the project, and TensorBoard the folder in `logging_dir`.
_PROJECT = "clamu"

TrackerNames: TypeAlias = "str | GeneralTracker | Sequence[str | GeneralTracker] | None"


class LossReport(Protocol):
    """Takes what the steps of a task's finetuning have shown."""

    def add_losses(self, task_id: str, losses: Sequence[float]) -> None:
        """Take a task's losses, one per step; one that was finetuned before, such as in an earlier pass, is let be."""
        ...


class Trackers:
    """The trackers that were asked for, checked before anything is trained.

    Args:
        report_to (`str`, `accelerate.tracking.GeneralTracker` or *sequence* of them, *optional*): names that
            Accelerate knows, or trackers that are ready.
        logging_dir (`str` or `Path`, *optional*): folder for those that write files.

    Raises:
        RecipeError: if one is unknown, not installed or lacks a folder, or if there is a folder for nobody.
    """

    def __init__(self, report_to: TrackerNames = None, logging_dir: str | Path | None = None) -> None:
        given = list(report_to) if isinstance(report_to, (list, tuple)) else [report_to]
        self._logging_dir = logging_dir
        self._makers = [
            _maker(asked, logging_dir)
            for number, asked in enumerate(given)
            if asked is not None and asked not in given[:number]
        ]
        if logging_dir is not None and not self._makers:
            raise RecipeError(
                f"logging_dir is {str(logging_dir)!r}, but report_to names no tracker that could write there. Name "
                "one (report_to, --report-to), such as tensorboard, or leave logging_dir out."
            )

    def require_outside(self, folder: Path) -> None:
        """Refuse a folder of logs that a model is to be saved in, before hours of work and not after them.

        Args:
            folder (`Path`): where the model goes.

        Raises:
            RecipeError: if logs would be in it.
        """
        if self._logging_dir is None:
            return
        logs = Path(self._logging_dir) / _PROJECT
        if logs.resolve().is_relative_to(folder.resolve()):
            raise RecipeError(
                f"Trackers would write to {str(logs)!r}, inside the folder of the model, {str(folder)!r}. Give "
                "another logging_dir (--logging-dir)."
            )

    @contextmanager
    def started(self, workers: Workers) -> Iterator[BuildReport | None]:
        """Start the trackers, which are told of what a block reports; `None` if there are none.

        What the main process was given counts for all of them: it reports, and the others bring it what they see.

        Args:
            workers (`Workers`): the processes of the build.

        Raises:
            RecipeError: if one does not start.
        """
        if not workers.gather(bool(self._makers))[0]:
            yield None
            return
        from accelerate import PartialState

        PartialState(cpu=workers.device.type == "cpu")  # some trackers write to Accelerate's log, which needs it
        with workers.watched(), ExitStack() as stack:
            report = BuildReport(workers)
            stack.callback(report.finish)
            if workers.is_main:
                for make in self._makers:
                    report.start(make)
            yield report


def _maker(asked: Any, logging_dir: str | Path | None) -> Callable[[], GeneralTracker]:
    """Return what makes a tracker."""
    from accelerate import tracking

    if isinstance(asked, tracking.GeneralTracker):
        return lambda: asked
    known = tracking.LOGGER_TYPE_TO_CLASS
    # "all" is not among them: whatever happens to be installed, a service on the internet perhaps, would get the ids.
    if not isinstance(asked, str) or asked not in known:
        raise RecipeError(f"report_to has the unknown tracker {asked!r}.{hint_for(asked, sorted(known))}")
    from accelerate.utils import LoggerType

    if asked in LoggerType and LoggerType(asked) not in tracking.get_available_trackers():
        raise RecipeError(
            f"report_to names {asked!r}, which is not installed. Install it (pip install {asked.replace('_', '-')}), "
            "or leave it out."
        )
    if not known[asked].requires_logging_directory:
        return lambda: known[asked](_PROJECT)
    if logging_dir is None:
        raise RecipeError(
            f"report_to names {asked!r}, which writes files. Say where to (logging_dir, --logging-dir): a folder "
            "that is not inside the saved model."
        )
    return lambda: known[asked](_PROJECT, str(logging_dir))


class BuildReport:
    """What one build tells its trackers, through the main process.

    Steps only go up, as some trackers drop what goes back: they count the optimizer steps that were reported.

    Args:
        workers (`Workers`): the processes of the build.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._trackers: list[GeneralTracker] = []
        self._step = 0
        self._seen: set[str] = set()
        # Of a process that is not the main one.
        self._waiting: dict[str, Sequence[float]] = {}

    def start(self, make: Callable[[], GeneralTracker]) -> None:
        """Make and start a tracker.

        Raises:
            RecipeError: if that fails.
        """
        try:
            tracker = make()
            # Older releases of Accelerate start them when they are made.
            getattr(tracker, "start", lambda: None)()
        except Exception as error:  # of any library, such as one that wants a login
            raise RecipeError(
                f"A tracker that report_to names does not start: {first_line(error).rstrip('.')}. Mend that, or leave "
                "it out."
            ) from error
        self._trackers.append(tracker)

    def add_losses(self, task_id: str, losses: Sequence[float]) -> None:
        """Report a task's losses (main process), or keep them for it; once for each task."""
        if task_id in self._seen:
            return
        self._seen.add(task_id)
        if not self._workers.is_main:
            self._waiting[task_id] = losses
            return
        for loss in losses:
            self._tell({f"loss/{task_id}": loss})
            self._step += 1

    def add_results(
        self,
        task_ids: Sequence[str],
        cluster_names: Sequence[str],
        scores: Mapping[str, Any] | None,
        seconds: Mapping[str, float],
    ) -> None:
        """Report the losses that other processes have seen, scores and durations; all processes call it.

        Args:
            task_ids (*sequence* of `str`): the tasks of the build; how many of them it did not finetune is logged.
            cluster_names (*sequence* of `str`): one per cluster.
            scores (*mapping*, *optional*): see `score_clusters`.
            seconds (*mapping* of `str` to `float`): by stage.
        """
        for waiting in self._workers.gather(self._waiting):
            if self._workers.is_main:
                for task_id, losses in waiting.items():
                    self.add_losses(task_id, losses)
        if not self._workers.is_main:
            return
        earlier = len(set(task_ids) - self._seen)
        if earlier:
            _logger.warning(
                f"{earlier} of {len(task_ids)} tasks were finetuned before this run started, so their losses are not "
                "reported again."
            )
        values = {f"seconds/{stage}": taken for stage, taken in seconds.items()}
        if scores is not None:
            values |= {f"score/{name}": mean for name, mean in scores["mean"].items()}
            for cluster, means in zip(cluster_names, scores["clusters"], strict=True):
                values |= {f"score/{name}/{cluster}": mean for name, mean in (means or {}).items()}
        self._tell(values)

    def _tell(self, values: dict[str, float]) -> None:
        self._each(lambda tracker: tracker.log(values, step=self._step))

    def _each(self, action: Callable[[GeneralTracker], object]) -> None:
        """Do something with each tracker; one that fails is left out from then on."""
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as error:  # a full disk or a lost connection should not cost hours of training
                self._trackers.remove(tracker)
                _logger.warning(
                    f"The tracker {tracker.name!r} failed ({first_line(error)}), so nothing more is reported to it. "
                    "The build goes on."
                )

    def finish(self) -> None:
        """Let the trackers write what they hold back."""
        self._each(lambda tracker: tracker.finish())
