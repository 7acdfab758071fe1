"""A run that is killed at any moment goes on when it is started again, and ends in the same bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from recipes import write_work
from safetensors import safe_open

from hf_clamu.storage import Journal

OFTEN = {"CLAMU_JOURNAL_SECONDS": "0"}


def _leftovers(folder):
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if ".out." in str(path)]


def _timed(run):
    started = time.monotonic()
    ended = run.wait()
    assert ended.code == 0, ended.err
    return time.monotonic() - started


def _kill(fork, work, seconds, seed, kills, *arguments):
    """Kill a build into `out` at least once and at most `kills` times, at random moments, then let it end."""
    draw = random.Random(seed)
    killed = 0
    while killed < kills:
        ended = fork(work, *arguments, **OFTEN).end(draw.uniform(0, seconds), signal.SIGKILL)
        if ended.code == 0 and killed > 0:
            return  # what was left to do after the last kill took less than the wait
        if ended.code == 0:
            # Never killed: the run by which the moments were chosen was a slow one. Begin anew, and kill sooner.
            shutil.rmtree(work / "out")
            seconds /= 2
            continue
        assert ended.code == -signal.SIGKILL, ended.err
        killed += 1
        if (work / "out" / "ledger.json").is_file() and not (work / ".out.journal.lock").exists():
            return  # killed on its way out, with nothing left to do
    _timed(fork(work, *arguments, **OFTEN))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize(
    "method", ["clamu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sift", "tall"))]
)
def test_a_build_survives_kills(fork, work, tiny, method, seed):
    seconds = _timed(fork(work, "train", f"{method}.yaml", "--output", "reference"))
    _kill(fork, work, seconds, seed, 5, "train", f"{method}.yaml", "--output", "out")
    assert tiny.digests(work / "out") == tiny.digests(work / "reference")
    assert _leftovers(work) == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize(
    "method", ["clamu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("emr", "sift"))]
)
def test_an_unmerge_survives_kills(fork, work, tiny, method, seed):
    assert fork(work, "train", f"{method}.yaml", "--output", "out").wait().code == 0
    without = ("--without", "user_1", "--without", "user_4", "--without", "user_6")
    assert fork(work, "train", f"{method}.yaml", "--output", "reference", *without).wait().code == 0
    shutil.copytree(work / "out", work / "timed")
    seconds = _timed(fork(work, "unmerge", "timed", "user_1", "user_4", "user_6"))
    before, after = tiny.digests(work / "out"), tiny.digests(work / "reference")
    assert tiny.digests(work / "timed") == after
    draw = random.Random(seed)
    for _ in range(5):
        ended = fork(work, "unmerge", "out", "user_1", "user_4", "user_6", **OFTEN).end(
            draw.uniform(0, seconds), signal.SIGKILL
        )
        assert ended.code in (0, -signal.SIGKILL), ended.err
        # The old model or the new one, whole, at every moment.
        assert tiny.digests(work / "out") in (before, after)
    _timed(fork(work, "unmerge", "out", "user_1", "user_4", "user_6", **OFTEN))
    assert tiny.digests(work / "out") == after
    assert _leftovers(work) == []
    # One of that of `timed`, and one of this.
    assert len(list((work / "receipts").iterdir())) == 2


# -- the journal -----------------------------------------------------------------------------------------------------


def _interrupted(fork, work, *, signal_=signal.SIGKILL):
    """Stop a build when its journal has at least two parts; return how it ended."""
    run = fork(work, "train", "clamu.yaml", "--output", "out", **OFTEN)
    deadline = time.monotonic() + 60
    while len(list((work / ".out.journal").glob("*.part"))) < 2:
        assert time.monotonic() < deadline, "no journal was written"
        time.sleep(0.002)
    return run.end(0, signal_)


@pytest.fixture(scope="module")
def references(fork, tiny, tmp_path_factory):
    """Digests of an undisturbed build."""
    folder = tmp_path_factory.mktemp("reference")
    write_work(folder)
    assert fork(folder, "train", "clamu.yaml", "--output", "out").wait().code == 0
    return tiny.digests(folder / "out")


def _ends_the_same(fork, work, tiny, references):
    _timed(fork(work, "train", "clamu.yaml", "--output", "out", **OFTEN))
    assert tiny.digests(work / "out") == references
    assert _leftovers(work) == []


def _truncate(data, draw):
    return data[: draw.randrange(len(data))]


def _flip(data, draw):
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda data, draw: b""], ids=["truncated", "flipped", "empty"])
def test_damaged_parts_are_done_again(fork, work, tiny, references, damage):
    assert _interrupted(fork, work).code == -signal.SIGKILL
    draw = random.Random(damage.__name__)
    for path in (work / ".out.journal").glob("*.part"):
        path.write_bytes(damage(path.read_bytes(), draw))
    _ends_the_same(fork, work, tiny, references)


@pytest.mark.parametrize("flips", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_no_flipped_bit_of_a_part_is_believed(fork, work, flips):
    assert _interrupted(fork, work).code == -signal.SIGKILL
    journal = Journal(work / ".out.journal")
    path = max(journal.folder.glob("*.part"), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["part"])
    journal.open(header["run"])
    assert [part.path for part in journal.parts(header["stage"]) if part.path == path] == [path]
    draw = random.Random(0)
    for _ in range(flips):
        path.write_bytes(_flip(whole, draw))
        assert path not in [part.path for part in journal.parts(header["stage"])]
        path.write_bytes(_truncate(whole, draw))
        assert path not in [part.path for part in journal.parts(header["stage"])]


def test_another_recipe_does_not_go_on_from_the_journal(fork, work, tiny, references):
    assert _interrupted(fork, work).code == -signal.SIGKILL
    recipe = (work / "clamu.yaml").read_text(encoding="utf-8")
    (work / "clamu.yaml").write_text(recipe.replace("finetune_steps: 4", "finetune_steps: 3"), encoding="utf-8")
    _timed(fork(work, "train", "clamu.yaml", "--output", "out", **OFTEN))
    assert tiny.digests(work / "out") != references
    _timed(fork(work, "train", "clamu.yaml", "--output", "again"))
    assert tiny.digests(work / "out") == tiny.digests(work / "again")


def test_changed_data_are_finetuned_again(fork, work, tiny, references):
    assert _interrupted(fork, work).code == -signal.SIGKILL
    rows = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    changed = ["".join(row.replace(" of ", " off ")) for row in rows]
    (work / "rows.jsonl").write_text("\n".join(changed) + "\n", encoding="utf-8")
    _timed(fork(work, "train", "clamu.yaml", "--output", "out", **OFTEN))
    _timed(fork(work, "train", "clamu.yaml", "--output", "again"))
    assert tiny.digests(work / "out") == tiny.digests(work / "again") != references


def test_an_interrupt_says_that_it_can_go_on(fork, work, tiny, references):
    ended = _interrupted(fork, work, signal_=signal.SIGINT)
    assert ended.code == 130
    assert ended.err.splitlines()[-1].endswith("The same command again goes on from what is finished.")
    assert not (work / "out").exists()
    _ends_the_same(fork, work, tiny, references)


def test_two_runs_on_one_output(fork, work):
    with Journal(work / ".out.journal").locked():
        ended = fork(work, "train", "clamu.yaml", "--output", "out").wait()
    assert ended.code == 2
    assert "Another run works on this output" in ended.err
    assert not (work / "out").exists()


def test_a_wrong_interval(fork, work):
    ended = fork(work, "train", "clamu.yaml", "--output", "out", CLAMU_JOURNAL_SECONDS="often").wait()
    assert ended.code == 2
    assert "CLAMU_JOURNAL_SECONDS must be a number of seconds, 0 or more; found 'often'" in ended.err


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(work):
    """Mounts a small disk at `work/disk`, or mounts it again with other options."""
    folder = work / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    yield mount
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("kilobytes", [4, 64, 200, 400])
def test_a_full_disk(fork, work, tiny, references, disk, kilobytes):
    disk(f"size={kilobytes}k")
    ended = fork(work, "train", "clamu.yaml", "--output", "disk/out", **OFTEN).wait()
    assert ended.code == 2
    assert "No space left on device" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert not (work / "disk/out").exists()
    disk("remount,size=64m")
    _timed(fork(work, "train", "clamu.yaml", "--output", "disk/out", **OFTEN))
    assert tiny.digests(work / "disk/out") == references


# Full at a tensor file, and at the tokenizer.
@pytest.mark.parametrize("spare", [100, 200])
def test_a_full_disk_loses_no_model(fork, work, tiny, disk, spare):
    disk("size=64m")
    assert fork(work, "train", "clamu.yaml", "--output", "disk/out").wait().code == 0
    before = tiny.digests(work / "disk/out")
    used = sum(path.stat().st_size for path in (work / "disk").rglob("*") if path.is_file())
    disk(f"remount,size={used // 1024 + spare}k")
    ended = fork(work, "unmerge", "disk/out", "user_1", "--data", "rows.jsonl", **OFTEN).wait()
    assert ended.code == 2
    assert "No space left on device" in ended.err.splitlines()[-1]
    assert tiny.digests(work / "disk/out") == before


def test_a_disk_that_may_not_be_written_to(fork, work, disk):
    disk("size=1m")
    disk("remount,ro")
    ended = fork(work, "train", "clamu.yaml", "--output", "disk/out").wait()
    assert ended.code == 2
    assert "Read-only file system" in ended.err.splitlines()[-1]
