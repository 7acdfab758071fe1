"""The promise on a CUDA device: the same bytes twice, after an unmerge, and from one process to the next.

Not part of the default suite: `pytest -m gpu` on a machine that has one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_clamu import ClamuModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
KINDS = ("text", "lm", "image")


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """Builds from some of the tasks on the GPU and saves; each build is made once."""
    folders = {}

    def build(kind, *without, **changes):
        key = json.dumps([kind, without, sorted(changes.items())])
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("gpu") / "model"
            tiny.train(kind, tiny.tasks(kind).without(without), **changes).save_pretrained(folders[key])
        return folders[key]

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_names_the_device_and_its_switches(built, kind):
    environment = json.loads((built(kind) / "ledger.json").read_bytes())["environment"]
    assert environment["device"].startswith(f"cuda {torch.cuda.get_device_name(0)}")
    assert environment["kernels"] == "deterministic, no TF32, math attention, cuBLAS workspace :4096:8"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"localization": "tall"}], ids=["fp32", "bf16", "tall"])
def test_unmerging_is_exact(tiny, built, tmp_path, kind, changes):
    first = tiny.tasks(kind).task_ids[1]
    model = ClamuModel.from_pretrained(built(kind, **changes))
    model.unmerge_task(first, data=tiny.tasks(kind)).save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(built(kind, first, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_makes_the_same_bytes(tiny, built, tmp_path, kind):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from conftest import Tiny;"
        f"Tiny.train({kind!r}).save_pretrained({str(tmp_path / 'm')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
    assert tiny.digests(tmp_path / "m") == tiny.digests(built(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_clusters_switch_on_the_device_as_on_the_cpu(built, kind, dtype):
    on_cpu = ClamuModel.from_pretrained(built(kind), dtype=dtype)
    on_gpu = ClamuModel.from_pretrained(built(kind), dtype=dtype, device_map="auto")
    assert on_gpu.device.type == "cuda"
    for cluster in (0, 1, None, 0):
        on_cpu.set_cluster(cluster)
        on_gpu.set_cluster(cluster)
        mine = dict(on_cpu.named_parameters())
        for name, parameter in on_gpu.named_parameters():
            assert torch.equal(parameter.detach().cpu(), mine[name].detach()), name
