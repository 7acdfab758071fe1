"""What trackers of Accelerate are told of a build, that no byte depends on it, and what is refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from accelerate import tracking
from accelerate.logging import get_logger
from event_files import needs_tensorboard, read_events

from hf_clamu import ClamuTrainer, FixedPointOverflowError, RecipeError
from hf_clamu.base_models.loading import load_base
from hf_clamu.tasks import collate
from hf_clamu.tasks.keyed_ids import keyed_id
from hf_clamu.training import Trackers, derive_seed, deterministic, sample_batches, silent_progress

USERS = tuple(f"user_{number}" for number in range(5))


class Recorder(tracking.GeneralTracker):
    """Keeps what it is told; written as Accelerate's docs say that trackers of one's own are."""

    name = "recorder"
    requires_logging_directory = False
    main_process_only = False  # as that of wandb

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, float]]] = []
        self.fails_at = fails_at
        self.ends = 0

    def start(self):
        get_logger(__name__).debug("needs Accelerate's state")

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        raise AssertionError("nothing but numbers goes out")

    def log(self, values, step=None, **kwargs):
        if len(self.told) == self.fails_at:
            raise OSError("No space left on device")
        self.told.append((step, values))

    def finish(self):
        self.ends += 1

    def losses(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for _, values in self.told:
            for tag, value in values.items():
                if tag.startswith("loss/"):
                    found.setdefault(tag.removeprefix("loss/"), []).append(value)
        return found


def _trainer(tiny, tasks=None, **options):
    changes = options.pop("changes", {})
    options = {"processing_class": tiny.processor("text"), "progress": silent_progress, **options}
    return ClamuTrainer(tiny.config("text"), tasks or tiny.tasks("text"), tiny.arguments(**changes), **options)


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """Digests of the files of a build that reports nothing, by its settings."""
    found = {}

    def digests(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in found:
            folder = tmp_path_factory.mktemp("plain") / "model"
            tiny.train("text", **changes).save_pretrained(folder)
            found[key] = tiny.digests(folder)
        return found[key]

    return digests


@pytest.fixture(scope="module")
def bare(tiny):
    """The losses of each task, as a loop sees them that reports nothing else."""
    tasks, arguments = tiny.tasks("text"), tiny.arguments()
    found = {}
    with deterministic(num_threads=1):
        for task_id in tasks:
            model = load_base(
                tiny.config("text"), tasks.spec, num_labels=tasks.num_labels, processor=tiny.processor("text")
            ).model.train()
            task = tasks.encode(task_id, tiny.processor("text"))
            parameters = [parameter for _, parameter in sorted(model.named_parameters())]
            optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.0, fused=True)
            torch.manual_seed(derive_seed(arguments.seed, "finetune", task_id))
            order = derive_seed(arguments.seed, "batches", task_id)
            for batch in sample_batches(task.train, arguments.batch_size, arguments.finetune_steps, order):
                loss = model(**collate(batch, 256)).loss
                found.setdefault(task_id, []).append(loss.item())
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
    return found


@pytest.mark.parametrize(
    "changes", [{"localization": "tall", "clustering": "task_vectors"}, {"clustering": "none"}], ids=["twice", "none"]
)
def test_each_task_is_reported_once_and_no_byte_depends_on_it(tiny, tmp_path, plain, bare, changes):
    recorder = Recorder()
    model = _trainer(tiny, report_to=[recorder, recorder], changes=changes).train()
    model.save_pretrained(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == plain(**changes)
    assert recorder.losses() == bare
    assert recorder.ends == 1


@needs_tensorboard
def test_tensorboard_has_losses_scores_and_seconds_and_the_model_is_the_same(tiny, tmp_path, plain, bare):
    trainer = _trainer(tiny, report_to="tensorboard", logging_dir=tmp_path / "logs")
    model = trainer.train()
    model.save_pretrained(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == plain()
    events = read_events(tmp_path / "logs/clamu")
    steps = [step for step, _, _ in events]
    assert steps == sorted(steps)
    losses = [(step, tag, value) for step, tag, value in events if tag.startswith("loss/")]
    assert [step for step, _, _ in losses] == list(range(15))
    seen = {user: [value for _, tag, value in losses if tag == f"loss/{user}"] for user in USERS}
    assert seen == bare
    last = {tag: value for step, tag, value in events if step == 15}
    config = model.clamu_config
    assert len(config.cluster_names) == 3
    expected = {f"score/{name}": mean for name, mean in config.scores["mean"].items()}
    for cluster, means in zip(config.cluster_names, config.scores["clusters"], strict=True):
        expected |= {f"score/{name}/{cluster}": mean for name, mean in means.items()}
    assert {tag: value for tag, value in last.items() if tag.startswith("score/")} == pytest.approx(expected)
    taken = {tag.removeprefix("seconds/"): value for tag, value in last.items() if tag.startswith("seconds/")}
    assert taken == pytest.approx(trainer.seconds)
    assert {"finetune", "total"} <= taken.keys()
    assert len(losses) + len(expected) + len(taken) == len(events)


def test_under_a_key_only_commitments_go_out(tiny, bare):
    recorder = Recorder()
    _trainer(tiny, report_to=recorder, task_id_key="secret", changes={"clustering": "none"}).train()
    assert recorder.losses().keys() == {keyed_id("secret", user) for user in bare}
    assert "user" not in json.dumps(recorder.told)


def test_a_task_that_diverges_shows_its_losses(tiny):
    recorder = Recorder()
    with pytest.raises(FixedPointOverflowError):
        _trainer(tiny, report_to=recorder, changes={"learning_rate": 1e30}).train()
    assert [len(losses) for losses in recorder.losses().values()] == [3]
    assert recorder.ends == 1


def test_a_build_that_goes_on_reports_the_rest_and_says_so_once(tiny, tmp_path, plain, bare, caplog):
    def interrupted(items, description):
        for number, item in enumerate(items):
            if number == 2 and description == "finetune":
                raise KeyboardInterrupt
            yield item

    options = {"journal_dir": tmp_path / "journal", "changes": {"localization": "global"}}
    first, second = Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        _trainer(tiny, report_to=first, progress=interrupted, **options).train()
    assert first.ends == 1
    with caplog.at_level(logging.WARNING, "hf_clamu.training.reporting"):
        model = _trainer(tiny, report_to=second, **options).train()
    assert len(first.losses()) == 2
    assert first.losses() | second.losses() == bare
    assert len(first.losses()) + len(second.losses()) == len(bare)
    said = [record.getMessage() for record in caplog.records if "finetuned before" in record.getMessage()]
    assert said == ["2 of 5 tasks were finetuned before this run started, so their losses are not reported again."]
    model.save_pretrained(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == plain(localization="global")


def test_a_tracker_that_fails_is_left_out_and_the_build_goes_on(tiny, tmp_path, plain, bare, caplog):
    failing, sound = Recorder(fails_at=4), Recorder()
    with caplog.at_level(logging.WARNING, "hf_clamu.training.reporting"):
        model = _trainer(tiny, report_to=[failing, sound]).train()
    said = [record.getMessage() for record in caplog.records if record.name == "hf_clamu.training.reporting"]
    assert said == [
        "The tracker 'recorder' failed (No space left on device), so nothing more is reported to it. "
        "The build goes on."
    ]
    assert (len(failing.told), failing.ends, sound.ends) == (4, 0, 1)
    assert sound.losses() == bare
    model.save_pretrained(tmp_path / "model")
    assert tiny.digests(tmp_path / "model") == plain()


def _missing() -> str:
    installed = set(map(str, tracking.get_available_trackers()))
    return next(name for name in sorted(tracking.LOGGER_TYPE_TO_CLASS) if name not in installed)


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'. Did you mean 'tensorboard'?"),
        (["all"], "unknown tracker 'all'. Known ones: .*wandb"),
        (7, "unknown tracker 7"),
        ({"wandb": True}, "unknown tracker {'wandb': True}"),
        (_missing(), f"'{_missing()}', which is not installed. Install it"),
    ],
)
def test_what_is_unknown_or_missing_is_refused(tiny, tmp_path, report_to, message):
    with pytest.raises(RecipeError, match=message):
        _trainer(tiny, report_to=report_to, logging_dir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


@needs_tensorboard
def test_folders_that_cannot_be_are_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"'tensorboard', which writes files\. Say where to"):
        _trainer(tiny, report_to="tensorboard")
    with pytest.raises(RecipeError, match="but report_to names no tracker that could write there"):
        _trainer(tiny, logging_dir=tmp_path)
    for logs, model in (("model", "model"), ("model/logs", "model"), ("", "clamu"), ("a/../model", "model")):
        trackers = Trackers("tensorboard", tmp_path / logs)
        with pytest.raises(RecipeError, match="inside the folder of the model"):
            trackers.require_outside(tmp_path / model)
        trackers.require_outside(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("", encoding="utf-8")
    seen = []

    def progress(items, description):
        seen.append(description)
        return items

    with pytest.raises(RecipeError, match=r"A tracker that report_to names does not start: .*file"):
        _trainer(tiny, report_to="tensorboard", logging_dir=tmp_path / "file", progress=progress).train()
    assert seen == []
