"""One, two or three processes: the same bytes; and one that fails ends the run.

Under a real launcher where it takes part in what is tested, once for each command. Elsewhere in forks that are told
what a launcher tells its processes, as each launch costs four times the imports of a run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from event_files import losses_in, needs_tensorboard
from recipes import write_work

FAULTS = Path(__file__).parent / "faults.py"
BIN = Path(sys.executable).parent
# What a user types, on this machine without a GPU.
LAUNCHERS = {
    2: [BIN / "accelerate", "launch", *"--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no".split()],
    3: [BIN / "torchrun", *"--standalone --nproc_per_node 3".split()],
}
LAUNCHERS[2] += ["--dynamo_backend", "no", "--main_process_port", "0"]


def _launch(size, folder, *arguments, script=("-m", "hf_clamu.cli"), **env):
    command = [*map(str, LAUNCHERS[size]), *script, *arguments]
    # Long enough for a slow machine, and far shorter than a process that waits for a dead one.
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def launch(fork):
    """Starts a command in several processes: `launch(2, folder, "train", ...)`."""

    def start(size, folder, *arguments, script=None, **env):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(size)]
        runs = [
            fork(folder, *arguments, script=script, **env, **{key: str(value) for key, value in values.items()})
            for values in told
        ]
        ended = [run.wait() for run in runs]
        code = next((one.code for one in ended if one.code), 0)
        said = ["".join(parts) for parts in zip(*((one.out, one.err) for one in ended), strict=True)]
        return subprocess.CompletedProcess(arguments, code, *said)

    return start


@pytest.fixture(scope="module")
def reference(fork, tiny, tmp_path_factory):
    """Digests of what one process makes, by method and by tasks left out."""
    folder = tmp_path_factory.mktemp("one")
    write_work(folder)
    found = {}

    def digests(method, *without):
        key = (method, *without)
        if key not in found:
            output = folder / f"{len(found)}"
            left_out = [word for task_id in without for word in ("--without", task_id)]
            ended = fork(folder, "train", f"{method}.yaml", "--output", str(output), *left_out).wait()
            assert ended.code == 0, ended.err
            found[key] = tiny.digests(output)
        return found[key]

    return digests


@pytest.mark.parametrize(
    ("size", "method"),
    [
        (2, "factors"),
        (2, "sift"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, "tall"), (2, "emr"))),
    ],
)
def test_the_number_of_processes_does_not_show(launch, work, tiny, reference, size, method):
    _require_no_sign(launch, work, tiny, reference, size, method)


@pytest.mark.parametrize("size", LAUNCHERS)
def test_the_number_of_launched_processes_does_not_show(work, tiny, reference, size):
    _require_no_sign(_launch, work, tiny, reference, size, "clamu")


def _require_no_sign(start, work, tiny, reference, size, method):
    done = start(size, work, "train", f"{method}.yaml", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Merged 8 tasks") == 1
    assert tiny.digests(work / "out") == reference(method)
    assert [path.name for path in work.iterdir() if path.name.startswith(".out")] == []


@needs_tensorboard
def test_the_main_process_reports_the_losses_of_all(fork, launch, work, tiny, reference):
    options = ("--report-to", "tensorboard", "--logging-dir")
    done = launch(2, work, "train", "tall.yaml", "--output", "out", *options, "logs")
    assert done.returncode == 0, done.stderr
    alone = fork(work, "train", "tall.yaml", "--output", "alone", *options, "alone-logs").wait()
    assert alone.code == 0, alone.err
    assert tiny.digests(work / "out") == tiny.digests(work / "alone") == reference("tall")
    losses = losses_in(work / "logs/clamu")
    assert {task_id: len(seen) for task_id, seen in losses.items()} == {f"user_{number}": 4 for number in range(8)}
    assert losses == losses_in(work / "alone-logs/clamu")
    assert len(list((work / "logs/clamu").iterdir())) == 1
    assert "finetuned before this run" not in done.stderr + alone.err


@pytest.mark.parametrize(
    ("method", "is_launched"),
    [("clamu", True), ("factors", False), pytest.param("sift", False, marks=pytest.mark.slow)],
)
def test_unmerge_and_verify_with_two_processes(fork, launch, work, tiny, reference, method, is_launched):
    assert fork(work, "train", f"{method}.yaml", "--output", "out").wait().code == 0
    done = (_launch if is_launched else launch)(2, work, "unmerge", "out", "user_2", "user_5", "user_7")
    assert done.returncode == 0, done.stderr
    assert tiny.digests(work / "out") == reference(method, "user_2", "user_5", "user_7")
    assert len(list((work / "receipts").iterdir())) == 1
    done = launch(2, work, "verify", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("identical") == 1


@pytest.mark.parametrize("method", ["clamu", pytest.param("sift", marks=pytest.mark.slow)])
def test_a_dry_run_with_two_processes_changes_nothing_and_foresees_the_request(
    fork, launch, work, tiny, reference, method
):
    assert fork(work, "train", f"{method}.yaml", "--output", "out", "--archive", "vectors").wait().code == 0
    before = tiny.digests(work)
    request = ("unmerge", "out", "user_2", "user_5", "--json")
    dry = launch(2, work, *request, "--dry-run", "--archive", "vectors")
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["status"] == "dry run"
    alone = fork(work, *request, "--dry-run").wait()
    assert alone.code == 0, alone.err
    assert tiny.digests(work) == before
    done = launch(2, work, *request)
    assert done.returncode == 0, done.stderr
    effects = [json.loads(out)["effect"] | {"seconds": None} for out in (dry.stdout, alone.out, done.stdout)]
    assert effects == effects[:1] * 3
    assert effects[0]["tasks"].keys() == {f"user_{number}" for number in (0, 1, 3, 4, 6, 7)}
    assert tiny.digests(work / "out") == reference(method, "user_2", "user_5")


def test_refusals_of_two_processes_change_nothing(fork, launch, work, tiny):
    assert fork(work, "train", "clamu.yaml", "--output", "out").wait().code == 0
    lines = [{"id": "a", "task": "user_1"}, {"id": "b", "task": "nobody"}]
    (work / "queue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    before = tiny.digests(work)
    done = launch(2, work, "unmerge", "out", "--from", "queue.jsonl", "--dry-run", "--json")
    assert done.returncode != 0
    found = json.loads(done.stdout)
    assert [entry["status"] for entry in found["requests"]] == ["dry run", "failed"]
    assert tiny.digests(work) == before
    assert found["effect"]["worst_drop"] > 0
    done = launch(2, work, "unmerge", "out", "user_1", "--max-drop", "0")
    assert done.returncode != 0
    assert re.search(r"clamu \[process \d\]: .* would lose .* of its accuracy", done.stderr)
    assert tiny.digests(work) == before


def test_verify_splits_tasks_in_another_way_than_a_build(launch, work):
    taken = {}
    for command in (("train", "clamu.yaml", "--output", "out"), ("verify", "out")):
        notes = work / f"notes-{command[0]}"
        notes.mkdir()
        done = launch(2, work, *command, script="takers", NOTES=str(notes))
        assert done.returncode == 0, done.stderr
        own = [(notes / f"{rank}.txt").read_text(encoding="utf-8").split() for rank in range(2)]
        assert sorted(own[0] + own[1]) == [f"user_{number}" for number in range(8)]
        taken[command[0]] = own
    # Whoever was free took the next one in the build; here a turn falls to the other process, the last ones first.
    assert taken["verify"] == [[f"user_{number}" for number in numbers] for numbers in ((7, 5, 3, 1), (6, 4, 2, 0))]
    left_over = [
        {task_id: set(own[:place]) for own in taken[command] for place, task_id in enumerate(own)}
        for command in ("train", "verify")
    ]
    assert all(not left_over[0][task_id] & left_over[1][task_id] for task_id in left_over[0])


@pytest.mark.slow
def test_two_machines_without_a_shared_disk(work, tiny, reference, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank in range(2):
        folder = tmp_path / f"machine-{rank}"
        folder.mkdir()
        for name in ("rows.jsonl", "clamu.yaml"):
            shutil.copy(work / name, folder / name)
        where = f"--nnodes 2 --node_rank {rank} --nproc_per_node 1 --master_addr 127.0.0.1 --master_port {port}"
        command = [str(BIN / "torchrun"), *where.split(), "-m", "hf_clamu.cli", "train", "clamu.yaml"]
        environment = {**os.environ, "CLAMU_JOURNAL_SECONDS": "0"}
        machines.append(subprocess.Popen([*command, "--output", "out"], cwd=folder, env=environment))
    assert [machine.wait(timeout=240) for machine in machines] == [0, 0]
    assert tiny.digests(tmp_path / "machine-0/out") == reference("clamu")
    # What the other one had finished is gone with the run.
    assert sorted(path.name for path in (tmp_path / "machine-1").iterdir()) == ["clamu.yaml", "rows.jsonl"]


@pytest.mark.parametrize(
    ("fault", "method"),
    [("raised", "clamu"), ("killed", "clamu"), pytest.param("killed", "sift", marks=pytest.mark.slow)],
)
def test_a_process_that_fails_ends_the_run_which_goes_on_with_another_number(
    fork, work, tiny, reference, fault, method
):
    journaled = {"CLAMU_JOURNAL_SECONDS": "0"}
    recipe = f"{method}.yaml"
    done = _launch(2, work, "train", recipe, "--output", "out", script=[str(FAULTS)], FAULT=fault, **journaled)
    assert done.returncode != 0
    assert not (work / "out").exists()
    if fault == "raised":
        assert re.search(r"clamu \[process 1\]: Task 'user_\d' is not to be had\.", done.stderr)
    ended = fork(work, "train", recipe, "--output", "out").wait()
    assert ended.code == 0, ended.err
    assert tiny.digests(work / "out") == reference(method)


def test_without_num_threads_several_processes_are_refused(launch, work):
    recipe = (work / "clamu.yaml").read_text(encoding="utf-8")
    (work / "clamu.yaml").write_text(recipe.replace("num_threads: 1, ", ""), encoding="utf-8")
    done = launch(2, work, "train", "clamu.yaml", "--output", "out")
    assert done.returncode != 0
    assert "num_threads must be set where several processes share the CPU" in done.stderr
    assert not (work / "out").exists()


def test_a_mistake_is_said_and_nobody_waits(work):
    (work / "rows.jsonl").unlink()
    done = _launch(2, work, "train", "clamu.yaml", "--output", "out")
    assert done.returncode != 0
    assert re.search(r"clamu \[process \d\]: .*'rows.jsonl' was not found", done.stderr)
