"""What the caller has set around a run must not show in its bytes, and is there again afterwards."""

from __future__ import annotations

import contextlib

import pytest
import torch

from hf_clamu.training import deterministic


@contextlib.contextmanager
def _default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default_dtype": _default_dtype,
    "default_device": lambda: torch.device("meta"),
}


def _facts() -> list[object]:
    return [
        torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
    ]


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_do_not_reach_inside_and_come_back(name):
    usual = [False, False, True, torch.float32, torch.device("cpu")]
    with SURROUNDINGS[name]():
        outside = _facts()
        assert outside != usual
        with deterministic(num_threads=1):
            assert _facts() == usual
        assert _facts() == outside


@pytest.mark.parametrize("name", ["autocast", "inference_mode", "default_dtype"])
def test_builds_and_requests_are_the_same_bytes(tiny, tmp_path, name):
    tasks = tiny.tasks("text")
    expected = tiny.train("text", tasks)
    expected.save_pretrained(tmp_path / "usual")
    with SURROUNDINGS[name]():
        found = tiny.train("text", tasks)
        found.save_pretrained(tmp_path / "found")
        found.unmerge_task("user_1")
    assert tiny.digests(tmp_path / "found") == tiny.digests(tmp_path / "usual")
    assert found.state_digest() == expected.unmerge_task("user_1").state_digest()
