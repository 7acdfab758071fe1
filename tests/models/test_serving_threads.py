"""Threads that share a live model: selecting a cluster and running it are one step, requests and saves included."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import multiprocessing
import pickle
import random
import signal
import sys
import threading
import time

import pytest
import torch
from in_threads import together

import hf_clamu
from hf_clamu import TaskNotFoundError, WeightsChangedError
from hf_clamu.evaluation import evaluate_model
from hf_clamu.exact import digest_tensors
from hf_clamu.serving.prediction import predict

TEXTS = ["great 1 of 2", "dull 3", "fair 0 of 4"]
IDS = torch.tensor([[72, 105, 33]])
pytestmark = pytest.mark.usefixtures("many_switches_of_threads")


def _digest(model):
    return digest_tensors(dict(model.named_parameters()))


class _Asker:
    """Asks a model in one of many ways for all clusters, and compares with what one thread was told before."""

    def __init__(self, model):
        self.model = model
        self.pipe = hf_clamu.pipeline("text-classification", model, device="cpu", top_k=None)
        self.ways = [self.by_pipeline, self.by_predict, self.by_serving, self.by_stream, self.by_batch]
        self.number = len(model.clusters)
        self.expected = {(way, k): way(k) for way in self.ways for k in range(self.number)}
        for way in self.ways:
            assert len({str(self.expected[way, k]) for k in range(self.number)}) == self.number

    def by_pipeline(self, k):
        return self.pipe(TEXTS, cluster=k)

    def by_predict(self, k):
        return predict(self.model, [{"text": text} for text in TEXTS], cluster=k)

    def by_serving(self, k):
        with torch.no_grad(), self.model.serving(k):
            assert self.model.cluster == k
            return self.model(IDS).logits.tolist()

    def by_stream(self, k):
        return list(self.pipe((text for text in TEXTS), task=self.model.clusters[k][0]))

    def by_batch(self, k):
        tasks = [self.model.clusters[(k + index) % self.number][0] for index in range(3)]
        return self.pipe(TEXTS, task=tasks)

    def ask(self, number):
        for turn in range(6):
            way, k = self.ways[(number + turn) % len(self.ways)], (number + turn) % self.number
            assert way(k) == self.expected[way, k], (way.__name__, k)


def test_eight_threads_are_answered_by_the_clusters_that_they_name(model, saved_text, tiny, tmp_path):
    asker = _Asker(model)
    base = _digest(model.set_base())
    model.set_cluster(1)
    assert together(*(lambda number=number: asker.ask(number) for number in range(8))) == []
    with model.serving(2):
        assert model.cluster == 2
    asker.ask(0)
    assert _digest(model.set_base()) == base
    model.save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(saved_text)


def test_a_request_and_a_save_between_answers(tiny, model, saved_text, tmp_path):
    without = tiny.train("text", tiny.tasks("text").without("user_1"))
    without.save_pretrained(tmp_path / "without")
    pipes = [hf_clamu.pipeline("text-classification", each, device="cpu") for each in (model, without)]
    expected = [[pipe(TEXTS, task=task) for task in ("user_0", "user_3")] for pipe in pipes]
    assert expected[0] != expected[1]
    pipe = pipes[0]
    is_forgotten, seen = threading.Event(), []

    def serve():
        while True:
            last = is_forgotten.is_set()
            for index, task in enumerate(("user_0", "user_3")):
                with model.held():
                    state = 1 - ("user_1" in model.tasks)
                    assert pipe(TEXTS, task=task) == expected[state][index]
                seen.append(state)
            if last:
                return

    def forget():
        try:
            model.unmerge_task("user_1", data=tiny.tasks("text"))
        finally:
            is_forgotten.set()

    def save():
        for number in range(3):
            model.save_pretrained(tmp_path / f"m{number}")

    def lose():
        while not is_forgotten.is_set():
            with contextlib.suppress(TaskNotFoundError):
                pipe(TEXTS, task="user_1")

    assert together(serve, serve, forget, save, lose) == []
    assert 1 in seen
    model.save_pretrained(tmp_path / "last")
    assert tiny.digests(tmp_path / "last") == tiny.digests(tmp_path / "without")
    states = [tiny.digests(saved_text), tiny.digests(tmp_path / "without")]
    assert all(tiny.digests(tmp_path / f"m{number}") in states for number in range(3))


def test_measuring_holds_the_model(tiny, model):
    tasks = tiny.tasks("text")
    asker = _Asker(model)
    expected = evaluate_model(model, tasks)
    found = []
    assert (
        together(lambda: found.append(evaluate_model(model, tasks)), lambda: asker.ask(1), lambda: asker.ask(2)) == []
    )
    assert found == [expected]


def test_a_stream_that_waits_for_its_next_row_holds_nobody_up(model):
    asker = _Asker(model)
    go = threading.Event()

    def rows():
        yield TEXTS[0]
        assert go.wait(60)
        yield TEXTS[1]

    answers = iter(asker.pipe(rows(), cluster=2))
    expected = asker.expected[asker.by_pipeline, 2]
    assert next(answers) == expected[0]
    rest = []
    reader = threading.Thread(target=lambda: rest.extend(answers))
    reader.start()
    assert together(lambda: asker.ask(0)) == []
    go.set()
    reader.join(60)
    assert rest == expected[1:2]


@pytest.mark.parametrize("state", ["base", "global", 1])
@pytest.mark.parametrize("how", ["predict", "evaluate", "export", "serving", "save", "failing"])
def test_what_was_selected_is_selected_afterwards(state, how, tiny, model, tmp_path):
    model.set_base() if state == "base" else model.set_cluster(None if state == "global" else state)
    before, cluster = _digest(model), model.cluster
    if how == "predict":
        predict(model, [{"text": "great", "user": "user_1"}, {"text": "dull"}])
    elif how == "evaluate":
        evaluate_model(model, tiny.tasks("text"), split="validation")
    elif how == "export":
        model.export(tmp_path / "plain", cluster=2)
    elif how == "save":
        model.save_pretrained(tmp_path / "m")
    elif how == "serving":
        with model.serving(task="user_0"):
            assert _digest(model) != before
            with model.serving(2):
                model.set_cluster(0)
            assert model.cluster == model.cluster_of("user_0") == 0
    else:
        with pytest.raises(RuntimeError, match="no memory"), model.serving(2):
            raise RuntimeError("no memory")
    assert (_digest(model), model.cluster) == (before, cluster)


def test_after_a_request_inside_a_block_the_global_model_is_selected(tiny, model):
    model.set_cluster(1)
    with model.serving(2):
        model.unmerge_task("user_1", data=tiny.tasks("text"))
    assert model.cluster is None
    assert model.state_digest() == tiny.train("text", tiny.tasks("text").without("user_1")).state_digest()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_is_not_held_with_its_model(how, model):
    asker = _Asker(model)
    with model.serving(1):
        other = how(model)
        assert other.cluster == 1
        found = []
        assert together(lambda: found.append(predict(other, [{"text": TEXTS[0]}], cluster=2))) == []
    assert found[0][0] == asker.expected[asker.by_predict, 2][0]


def test_copies_are_made_while_others_serve(model):
    asker, logits = _Asker(model), {}
    for k in range(asker.number):
        logits[k] = asker.by_serving(k)

    def make():
        for _ in range(3):
            other = copy.deepcopy(model)
            for k in range(asker.number):
                with torch.no_grad():
                    assert other.set_cluster(k)(IDS).logits.tolist() == logits[k]

    assert together(make, lambda: asker.ask(0), lambda: asker.ask(1)) == []


def _answer_in_a_child(model, connection):
    torch.set_num_threads(1)  # the threads of the parent's pool are not here
    connection.send(predict(model, [{"text": TEXTS[0]}], cluster=2))


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_serves_while_a_thread_here_holds_the_model(model):
    asker = _Asker(model)
    taken, done = threading.Event(), threading.Event()

    def hold():
        with model.serving(1):
            taken.set()
            assert done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(60)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_answer_in_a_child, args=(model, theirs))
    child.start()
    assert ours.poll(60)
    assert ours.recv()[0] == asker.expected[asker.by_predict, 2][0]
    child.join(60)
    done.set()
    holder.join(60)
    assert child.exitcode == 0


# -- interruptions ---------------------------------------------------------------------------------------------------


class _Stop(BaseException):
    pass


def _interrupt(thread_id):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(_Stop))


def _interrupted_runs(model, tiny, folder, saved, runs, seed):
    asker = _Asker(model)
    base = _digest(model.set_base())
    chance = random.Random(seed)
    errors = []

    def work():
        try:
            for number in range(10**6):
                asker.ask(number)
        except BaseException as error:
            errors.append(type(error))

    for run in range(runs):
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(chance.uniform(0.001, 0.03))
        _interrupt(thread.ident)
        thread.join(60)
        assert not thread.is_alive()
        assert errors == [_Stop] * (run + 1)
        # Nobody has selected since: what serves is a model of ours, and the one that it says; or it refuses.
        with torch.no_grad(), contextlib.suppress(WeightsChangedError):
            before = model(IDS).logits.tolist()
            bases = [model.set_base()(IDS).logits.tolist()] if model.cluster is None else []
            assert before in [*bases, model.set_cluster(model.cluster)(IDS).logits.tolist()]
        asker.ask(run)
        assert _digest(model.set_base()) == base
        if run % 10 == 0:
            model.save_pretrained(folder / f"m{run}")
            assert tiny.digests(folder / f"m{run}") == saved


def test_interrupted_answers_leave_weights_that_are_known(model, tiny, saved_text, tmp_path):
    _interrupted_runs(model, tiny, tmp_path, tiny.digests(saved_text), 6, 1)


@pytest.mark.slow
def test_a_hundred_interrupted_answers_leave_weights_that_are_known(model, tiny, saved_text, tmp_path):
    _interrupted_runs(model, tiny, tmp_path, tiny.digests(saved_text), 100, 2)


def test_a_keyboard_interrupt_lets_others_serve(model):
    asker = _Asker(model)
    base = _digest(model.set_base())

    def serve(delay):
        signal.setitimer(signal.ITIMER_REAL, delay)  # in here: on a slow machine it rings at once
        while True:
            asker.by_serving(0)
            asker.by_serving(1)

    for delay in (0.001, 0.004, 0.011):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                serve(delay)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        assert together(lambda: asker.ask(0)) == []
        assert _digest(model.set_base()) == base


def test_a_model_whose_switch_broke_off_refuses_to_serve(model, saved_text, tiny, tmp_path):
    # Interrupted in the middle, and it cannot go back: a weight was changed meanwhile.
    model.set_cluster(0)
    expected = model(IDS).logits.tolist()
    kept, lines = [], 0

    def trace(frame, event, arg):
        nonlocal lines
        if not frame.f_code.co_filename.endswith("exact/switch.py"):
            return None
        lines += event == "line"
        if lines == 300:
            kept.append(model.score.weight.detach().clone())
            with torch.no_grad():
                model.score.weight.add_(1.0)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.set_cluster(1)
    finally:
        sys.settrace(before)
    for act in (lambda: model.set_cluster(0), lambda: model.save_pretrained(tmp_path / "m")):
        with pytest.raises(WeightsChangedError, match=r"'score.weight' was changed"):
            act()
    with torch.no_grad():
        model.score.weight.copy_(kept[0])
    with pytest.raises(WeightsChangedError, match="Select one again"):
        model(IDS)
    # What is saved is right all the same.
    model.save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(saved_text)
    assert model.set_cluster(0)(IDS).logits.tolist() == expected
