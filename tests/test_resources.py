"""Seconds by stage, peak memory and room on the disk."""

from __future__ import annotations

import builtins
import time

import pytest

from hf_clamu.resources import Stopwatch, peak_memory, size_of_files, with_stages


def test_a_stage_counts_without_the_stages_inside_it():
    watch = Stopwatch()
    started = time.perf_counter()
    with watch.stage("outer"):
        time.sleep(0.01)
        for _ in range(2):
            with watch.stage("inner"), watch.stage("innermost"):
                time.sleep(0.05)
    total = time.perf_counter() - started
    assert watch.seconds["innermost"] >= 0.1
    assert 0.01 <= watch.seconds["outer"] <= total - 0.1
    assert 0 <= watch.seconds["inner"] < 0.05
    assert sum(watch.seconds.values()) <= total


def test_a_stage_that_fails_is_counted():
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"), watch.stage("outer"), watch.stage("inner"):
        raise ValueError("no")
    with watch.stage("outer"):
        time.sleep(0.01)
    assert watch.seconds["outer"] >= 0.01 > watch.seconds["inner"]


def test_stages_around_are_part_of_the_total():
    assert with_stages({"load": 1.0, "total": 3.0}, load=0.5, save=2.0) == {"load": 1.5, "save": 2.0, "total": 5.5}
    assert with_stages({}, compare=1.0) == {"compare": 1.0, "total": 1.0}


def test_peak_memory_follows_what_a_process_has_had():
    before = peak_memory()
    assert before is not None
    room = bytearray(before // 2)
    room[:: 2**10] = b"1" * len(room[:: 2**10])
    del room
    after = peak_memory()
    assert after is not None
    assert 2**20 < before <= after < 100 * before


def test_a_system_without_the_module_has_no_peak(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name == "resource":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert peak_memory() is None


def test_files_are_summed_below_a_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "inside" / "two").write_bytes(b"123")
    assert size_of_files(tmp_path) == 8
