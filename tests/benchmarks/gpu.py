"""On a CUDA device, at the size of GPT-2 small: whether forgetting is exact there, and what steps and switches cost.

    python -m tests.benchmarks.gpu --output gpu.json      # on the machine that has one
    python -m tests.benchmarks.gpu --page gpu.json        # anywhere; writes docs/benchmarks.md

Both times of a ratio are measured in turn, in one process, and each waits for the device.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_clamu import ClamuArguments, ClamuModel, ClamuTrainer, TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.exact import DeltaAccumulator, FixedPoint, fraction_bits_for
from hf_clamu.training import MaskingArguments, TaskTrainer, Workspace, deterministic, silent_progress, train_mask
from tests.benchmarks import pages
from tests.benchmarks.__main__ import SIZES
from tests.benchmarks.rows import Row, Size, ratios, timed, times
from tests.benchmarks.training import gpt2

# Rows of a task, and tokens of a row.
_ROWS, _TOKENS = 8, 128
_LORA = {"peft_type": "LORA", "r": 16, "target_modules": ["c_attn", "c_proj", "c_fc"], "task_type": "CAUSAL_LM"}
_WAYS: dict[str, dict[str, Any]] = {
    "all weights, float32": {},
    "all weights, bf16": {"bf16": True},
    "LoRA of rank 16, bf16": {"bf16": True, "peft_config": _LORA},
}


def measure(size: Size, rounds: int, tasks: int, output: Path | None) -> dict[str, Any]:
    """Build, forget and build again each way, then time steps and switches; what is found is written as it comes."""
    device = torch.device("cuda" if _has_gpu() else "cpu")
    name = torch.cuda.get_device_name(device) if _has_gpu() else "no GPU"
    found: dict[str, Any] = {"machine": f"one {name}, {pages.machine()}, torch {torch.__version__}"}
    found |= {"builds": [], "rows": []}

    def add(kind: str, values: list[dict[str, Any]]) -> None:
        found[kind] += values
        if output is not None:
            output.write_text(json.dumps(found, indent=1), encoding="utf-8")

    for way, settings in _WAYS.items():
        add("builds", [_exactness(size, texts(tasks), way, settings)])
    for part in (_finetuning, _mask_steps, _switching):
        add("rows", [row.to_dict() for row in part(size, rounds, device)])
    return found


def texts(tasks: int) -> TaskDataset:
    """Return tasks of prompts and completions, of more bytes than a row has tokens."""
    from datasets import Dataset

    rows = []
    for task, row in itertools.product(range(tasks), range(_ROWS)):
        numbers = range(_TOKENS // 8)
        words = " ".join(hashlib.sha256(f"{task // 4} {row} {n}".encode()).hexdigest()[:7] for n in numbers)
        rows.append({"user": f"user_{task:03d}", "prompt": f"{row} of {task}:", "completion": f" {words}"})
    return TaskDataset.from_dataset(
        Dataset.from_list(rows), task_column="user", prompt_column="prompt", completion_column="completion",
        max_length=_TOKENS,
    )  # fmt: skip


def _model(size: Size) -> Any:
    """Return a base of one's own, whose embeddings and positions suffice for the texts, whatever the size."""
    least = {"vocab_size": len(byte_tokenizer()), "n_positions": _TOKENS}
    return copy.deepcopy(_drawn(json.dumps(size.gpt2 | {name: max(n, size.gpt2[name]) for name, n in least.items()})))


@functools.cache  # drawing takes longer than anything else here
def _drawn(config: str) -> Any:
    return gpt2(json.loads(config))


def _arguments(**changes: Any) -> ClamuArguments:
    settings = {"num_clusters": 4, "clustering": "features", "finetune_steps": 20, "batch_size": _ROWS}
    return ClamuArguments(**{**settings, "mask_steps": 20, "mask_batch_size": _ROWS, **changes})


def _build(size: Size, tasks: TaskDataset, settings: dict[str, Any], folder: Path) -> ClamuTrainer:
    changes = dict(settings)
    adapter = changes.pop("peft_config", None)
    trainer = ClamuTrainer(
        _model(size), tasks, _arguments(**changes), peft_config=adapter, processing_class=byte_tokenizer(),
        progress=silent_progress,
    )  # fmt: skip
    trainer.train().save_pretrained(folder)
    return trainer


def _exactness(size: Size, tasks: TaskDataset, way: str, settings: dict[str, Any]) -> dict[str, Any]:
    left = tasks.task_ids[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _reset_peak()
        trainer = _build(size, tasks, settings, folder / "built")
        found = {"way": way, "tasks": len(tasks), "peak": _peak(), "seconds": dict(trainer.seconds)}

        def forget() -> None:
            model = ClamuModel.from_pretrained(folder / "built", device_map="auto" if _has_gpu() else None)
            model.unmerge_task(left, data=tasks).save_pretrained(folder / "after")

        found["unmerge"] = timed(forget)
        found["rebuild"] = timed(partial(_build, size, tasks.without([left]), settings, folder / "without"))
        before, after, without = (_digests(folder / one) for one in ("built", "after", "without"))
        found |= {"is_exact": after == without, "changed": sum(before[one] != after.get(one) for one in before)}
        found["weights"] = sum(parameter.numel() for parameter in _model(size).parameters())
        shutil.rmtree(folder / "built")
    return found


def _digests(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _reset_peak() -> None:
    if _has_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if _has_gpu() else 0


def _waiting(work: Callable[[], Any]) -> Callable[[], None]:
    """Let a timed call end when the device has done its work."""

    def whole() -> None:
        work()
        if _has_gpu():
            torch.cuda.synchronize()

    return whole


def _finetuning(size: Size, rounds: int, device: torch.device) -> list[Row]:
    tokenizer, tasks, arguments = byte_tokenizer(), texts(4), _arguments(learning_rate=1e-4)
    rows = []
    for bf16 in (False, True):
        with deterministic(torch.get_num_threads()):
            workspace = Workspace(_model(size), device=device, pad_token_id=tokenizer.pad_token_id, bf16=bf16)
            codec = FixedPoint(fraction_bits=fraction_bits_for(arguments.total_learning_rate))
            trainer = TaskTrainer(workspace, tasks, tokenizer, arguments, codec)
            workspace.reset()  # the bare loop, too, needs weights that it may change
            total = DeltaAccumulator(workspace.shapes)
            task_id = tasks.task_ids[0]
            batch = workspace.batch(trainer.encoded(task_id).train)
            works = [partial(_bare, workspace, batch, arguments), partial(trainer.finetune, task_id)]
            works.append(lambda trainer=trainer, total=total, task_id=task_id: total.add(trainer.vector(task_id)))
            bare, finetuned, whole = times([_waiting(work) for work in works], rounds)
        kind = "bf16" if bf16 else "float32"
        against = f"the bare loop, {1000 * min(bare) / arguments.finetune_steps:.1f} ms a step"
        rows += [
            Row(what=f"finetune a task, 20 steps of 8 x {_TOKENS} tokens, {kind}", against=against,
                values=ratios(finetuned, bare)),
            Row(what="… and encode, digest and add its vector", against=against, values=ratios(whole, bare)),
        ]  # fmt: skip
    return rows


def _bare(workspace: Workspace, batch: dict[str, torch.Tensor], arguments: ClamuArguments) -> None:
    parameters = list(workspace.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.0, fused=True)
    workspace.model.train()
    for _ in range(arguments.finetune_steps):
        workspace.forward(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _mask_steps(size: Size, rounds: int, device: torch.device) -> list[Row]:
    steps = 20
    with deterministic(torch.get_num_threads()):
        workspace = Workspace(_model(size), device=device)
        theta_1 = {name: x + 1e-4 * torch.randn_like(x) for name, x in workspace.theta_0.items()}
        ids = torch.randint(0, size.gpt2["vocab_size"], (_ROWS, _TOKENS))
        examples = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]

        def masks() -> None:
            train_mask(
                workspace, theta_1, examples, MaskingArguments(mask_steps=steps, mask_batch_size=_ROWS), 0
            )  # fmt: skip

        def sgd() -> None:
            workspace.reset()
            batch = workspace.batch(examples)
            optimizer = torch.optim.SGD(list(workspace.parameters.values()), lr=1e-3)
            with workspace.training():
                for _ in range(steps):
                    workspace.forward(batch).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

        plain, own = times([_waiting(sgd), _waiting(masks)], rounds)
    against = f"plain SGD on all weights, {1000 * min(plain) / steps:.1f} ms a step"
    return [
        Row(what=f"mask training, {steps} steps of 8 x {_TOKENS} tokens", against=against, values=ratios(own, plain))
    ]


def _switching(size: Size, rounds: int, _: torch.device) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _build(size, texts(4), {"num_clusters": 2, "finetune_steps": 2, "mask_steps": 2}, Path(folder))
        for dtype in (None, "bfloat16"):
            model = ClamuModel.from_pretrained(folder, dtype=dtype, device_map="auto" if _has_gpu() else None)
            rows.append(_switches(model, rounds, dtype or "float32"))
    return rows


def _switches(model: Any, rounds: int, kind: str) -> Row:
    target = [torch.empty_like(parameter) for parameter in model.parameters()]
    clusters = itertools.cycle([0, 1])

    def copied() -> None:
        for x, parameter in zip(target, model.parameters(), strict=True):
            x.copy_(parameter.detach())

    # As a server switches: checks, locks and masks that may have to travel included.
    taken, switched = times([_waiting(copied), _waiting(lambda: model.set_cluster(next(clusters)))], rounds)
    against = f"`copy_` of all weights on the device, {1000 * min(taken):.2f} ms"
    return Row(what=f"`set_cluster`, {kind}", against=against, values=ratios(switched, taken))


def page(found: dict[str, Any]) -> str:
    """Return what is written into the docs."""
    lines = []
    for one in found["builds"]:
        seconds = one["seconds"]
        each = seconds.get("finetune", 0) / one["tasks"]
        lines.append(
            [
                one["way"], one["tasks"], f"{seconds['total']:.1f}", f"{each:.2f}", f"{one['unmerge']:.1f}",
                f"{one['rebuild']:.1f}", f"{one['peak'] / (4 * one['weights']):.1f}",
                "yes" if one["is_exact"] else "**no**",
            ]
        )  # fmt: skip
    columns = ["a GPT-2 small", "tasks", "build, s", "finetuning of a task, s", "load, forget one and save, s"]
    columns += ["build without it and save, s", "device memory, models", "the same bytes"]
    rows = [Row(**row) for row in found["rows"]]
    table = pages.table(["what", "divided by", "median"], [row.cells()[:3] for row in rows])
    missing = "What steps and switches take there was not measured."
    note = (
        f"`python -m tests.benchmarks.gpu` on {found['machine']}. Tasks of {_ROWS} rows of {_TOKENS} tokens, 20 "
        "steps; four clusters by features, masks by ClAMU in 20 steps. Base models are drawn, not pretrained."
    )
    return f"{note}\n\n{pages.table(columns, lines)}\n\n{table if rows else missing}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--output", type=Path, help="write what is measured here, as JSON")
    parser.add_argument("--page", type=Path, help="measure nothing; write the docs from this JSON")
    options = parser.parse_args()
    if options.page is not None:
        pages.write("benchmarks.md", "gpu", page(json.loads(options.page.read_text(encoding="utf-8"))))
        return
    found = measure(SIZES[options.size], options.rounds, options.tasks, options.output)
    print(page(found))  # noqa: T201


if __name__ == "__main__":
    main()
