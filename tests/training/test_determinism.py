from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_clamu.errors import EnvironmentMismatchError
from hf_clamu.training import Environment, derive_seed, deterministic, seeded


def test_derived_seeds_have_their_golden_values():
    # They are part of the format: other seeds, and no saved model could be unmerged.
    assert derive_seed(0, "finetune", "user_17") == 2110989712787520502
    assert derive_seed(7, "mask", "a", "b") == 917583311222254284
    assert derive_seed(0, "cluster") == 8960525932045436705
    assert derive_seed(0, "finetune", "ünïcode ☃") == 3272863595984831477


def test_derived_seeds_differ_in_every_part():
    parts = [
        (0, "finetune", "ab", "c"),
        (0, "finetune", "a", "bc"),
        (0, "finetune", "abc"),
        (0, "finetunea", "bc"),
        (0, "batches", "ab", "c"),
        (1, "finetune", "ab", "c"),
        (0, "finetune", "c", "ab"),
        (0, "finetune", "ab", "c", ""),
    ]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def _draws() -> tuple[float, float, list[float]]:
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()


def test_seeded_gives_the_same_numbers_and_restores_all_generators():
    before = _draws_from_copies()
    with seeded(2**62 + 5):
        first = _draws()
    with seeded(2**62 + 5):
        second = _draws()
    with seeded(2**62 + 6):
        other = _draws()
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert _draws() == before


def _draws_from_copies() -> tuple[float, float, list[float]]:
    """What the generators would give next, without moving them."""
    python, generator = random.Random(), np.random.RandomState()
    python.setstate(random.getstate())
    generator.set_state(np.random.get_state())
    torch_generator = torch.Generator()
    torch_generator.set_state(torch.get_rng_state())
    return python.random(), float(generator.rand()), torch.rand(3, generator=torch_generator).tolist()


def test_seeded_restores_after_an_exception():
    before = _draws_from_copies()

    def fail() -> None:
        with seeded(3):
            _draws()
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert _draws() == before


def _switches() -> dict[str, object]:
    cudnn, cuda, mkldnn = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.benchmark": cudnn.benchmark,
        "cudnn.allow_tf32": cudnn.allow_tf32,
        "matmul.allow_tf32": cuda.matmul.allow_tf32,
        "precision": torch.get_float32_matmul_precision(),
        "cpu precision": getattr(getattr(mkldnn, "matmul", None), "fp32_precision", None),
        "flash": cuda.flash_sdp_enabled(),
        "mem_efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn_sdp": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


@pytest.fixture
def unusual():
    """Every switch the other way round than inside."""
    before = _switches()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = False, True, True
    torch.set_float32_matmul_precision("medium")
    cuda.enable_flash_sdp(True)
    cuda.enable_mem_efficient_sdp(True)
    cuda.enable_cudnn_sdp(True)
    yield _switches()
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])
    cudnn.deterministic, cudnn.benchmark = before["cudnn.deterministic"], before["cudnn.benchmark"]
    torch.set_float32_matmul_precision(before["precision"])
    cudnn.allow_tf32 = before["cudnn.allow_tf32"]
    cuda.enable_flash_sdp(before["flash"])
    cuda.enable_mem_efficient_sdp(before["mem_efficient"])
    cuda.enable_cudnn_sdp(before["cudnn_sdp"])


def test_deterministic_sets_every_switch_and_restores_it(unusual):
    with deterministic(num_threads=1):
        inside = _switches()
    assert inside.pop("cpu precision") in ("ieee", None)
    assert inside == {
        "threads": 1,
        "deterministic": True,
        "warn_only": False,
        "cudnn.deterministic": True,
        "cudnn.benchmark": False,
        "cudnn.allow_tf32": False,
        "matmul.allow_tf32": False,
        "precision": "highest",
        "flash": False,
        "mem_efficient": False,
        "cudnn_sdp": False,
        "math": True,
    }
    assert _switches() == unusual
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_deterministic_restores_after_an_exception(unusual):
    def fail() -> None:
        with deterministic(num_threads=1):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert _switches() == unusual


def test_deterministic_keeps_the_threads_unless_told(unusual):
    with deterministic():
        assert torch.get_num_threads() == 2


def test_a_child_is_not_kept_waiting_by_a_thread_that_it_does_not_have():
    # In a process of its own, which forks while another of its threads trains.
    code = (
        "import os, threading, warnings\n"
        "from hf_clamu.training import deterministic, seeded\n"
        "warnings.simplefilter('ignore')\n"
        "inside, leave = threading.Event(), threading.Event()\n"
        "def train():\n"
        "    with deterministic(1), seeded(1):\n"
        "        inside.set()\n"
        "        leave.wait(60)\n"
        "thread = threading.Thread(target=train)\n"
        "thread.start()\n"
        "assert inside.wait(60)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    with deterministic(1), seeded(2):\n"
        "        os._exit(7)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "leave.set()\n"
        "thread.join()\n"
        "assert status == 7, status\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="the newer switches came with torch 2.9")
def test_the_newer_precision_switches_can_be_used_outside():
    # In a process of its own: torch refuses to read the old switches ever after.
    code = (
        "import torch\n"
        "from hf_clamu.training import deterministic\n"
        "torch.backends.fp32_precision = 'tf32'\n"
        "names = [(torch.backends.cuda, 'matmul')]\n"
        "names += [(torch.backends.cudnn, 'conv'), (torch.backends.mkldnn, 'matmul')]\n"
        "read = lambda: [getattr(owner, name).fp32_precision for owner, name in names]\n"
        "before = read()\n"
        "with deterministic():\n"
        "    assert read() == ['ieee'] * 3, read()\n"
        "assert read() == before, read()\n"
        "assert before[2] == 'tf32', before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def environment() -> Environment:
    return Environment.capture(torch.device("cpu"), 3)


def test_environment_survives_json(environment):
    again = Environment.from_dict(json.loads(json.dumps(environment.to_dict())))
    assert again == environment
    again.require(environment)


def test_environment_names_what_it_reads(environment):
    import transformers

    assert environment.num_threads == 3
    assert Environment.capture(torch.device("cpu")).num_threads == torch.get_num_threads()
    assert torch.__version__ in environment.framework
    assert environment.models == f"transformers {transformers.__version__}"
    assert environment.libraries["numpy"] == np.__version__
    assert environment.device.startswith("cpu ")
    assert environment.python.split()[1] == f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize("name", ["framework", "models", "python", "device", "cpu_capability", "num_threads"])
def test_require_names_a_difference(environment, name):
    recorded = dataclasses.replace(environment, **{name: "other"})
    with pytest.raises(EnvironmentMismatchError) as error:
        environment.require(recorded)
    assert f"{name}: 'other' then, {getattr(environment, name)!r} now" in str(error.value)
    assert str(error.value).count(" then, ") == 1


def test_require_names_every_difference(environment):
    libraries = {**environment.libraries, "numpy": "0.1", "gone": "1.0"}
    del libraries["scipy"]
    recorded = dataclasses.replace(environment, libraries=libraries, num_threads=64)
    with pytest.raises(EnvironmentMismatchError) as error:
        environment.require(recorded)
    for part in (
        "num_threads: 64 then, 3 now",
        f"libraries.numpy: '0.1' then, '{np.__version__}' now",
        "libraries.gone: '1.0' then, None now",
        f"libraries.scipy: None then, {environment.libraries['scipy']!r} now",
        "rebuild",
    ):
        assert part in str(error.value)
    assert str(error.value).count(" then, ") == 4
