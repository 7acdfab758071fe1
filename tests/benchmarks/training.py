"""Steps of mask training and of finetuning; against the same steps in bare loops, and against transformers.Trainer."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset

from hf_clamu import ClamuArguments, TaskDataset
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.exact import DeltaAccumulator, FixedPoint, fraction_bits_for
from hf_clamu.training import MaskingArguments, TaskTrainer, Workspace, deterministic, train_mask
from tests.benchmarks.rows import Peak, Row, Size, ratios, timed, times

_STEPS, _FINETUNE_STEPS, _BATCH = 10, 10, 8


def gpt2(config: dict[str, Any]) -> Any:
    import transformers

    torch.manual_seed(0)
    last = config["vocab_size"] - 1
    given = {"bos_token_id": last, "eos_token_id": last, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **given))


def measure(size: Size, rounds: int) -> list[Row]:
    with deterministic(torch.get_num_threads()):
        return [*_mask_steps(size, rounds), *_finetuning(size, rounds)]


def _mask_steps(size: Size, rounds: int) -> list[Row]:
    workspace = Workspace(gpt2(size.gpt2))
    theta_1 = {name: x + 1e-4 * torch.randn(x.shape) for name, x in workspace.theta_0.items()}
    count, length = size.tokens
    ids = torch.randint(0, size.gpt2["vocab_size"], (count, length))
    examples = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    peaks: list[int] = []

    def masks() -> None:
        peak = Peak()
        arguments = MaskingArguments(mask_steps=_STEPS, mask_batch_size=count)
        train_mask(workspace, theta_1, examples, arguments, 0)
        peaks.append(peak.above_first())

    def sgd() -> None:
        workspace.reset()
        batch = workspace.batch(examples)
        parameters = list(workspace.parameters.values())
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        peak = Peak()
        with workspace.training():
            for _ in range(_STEPS):
                workspace.forward(batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        plain.append(peak.above_first())

    plain: list[int] = []
    plain_seconds, own = times([sgd, masks], rounds)
    model = 4 * workspace.num_parameters
    # Plain SGD has the live weights and their gradient; M0 and the delta are there before, the scores are in both.
    extra = [(one - other) / model for one, other in zip(peaks[1:], plain[1:], strict=True)]
    step = f"{_STEPS} steps of {count} x {length} tokens"
    return [
        Row(what=f"mask training, {step}", against="plain SGD on all weights", values=ratios(own, plain_seconds),
            target=1.15),
        Row(what="… memory beyond plain SGD's, scores included, beside M0 and the delta", against="the model's size",
            values=extra, target=2),
    ]  # fmt: skip


def prompts(count: int) -> TaskDataset:
    """Return tasks of a few short prompts and completions each."""
    rows = [
        {"user": f"user_{task:03d}", "prompt": f"say {n} of {task}:", "completion": f" number {n} of {task} is said"}
        for task in range(count)
        for n in range(_BATCH)
    ]
    return TaskDataset.from_dataset(
        Dataset.from_list(rows), task_column="user", prompt_column="prompt", completion_column="completion"
    )


def _finetuning(size: Size, rounds: int) -> list[Row]:
    tokenizer = byte_tokenizer()
    model = gpt2({**size.small, "vocab_size": len(tokenizer)})
    tasks = prompts(size.tasks)
    arguments = ClamuArguments(finetune_steps=_FINETUNE_STEPS, batch_size=_BATCH, learning_rate=1e-4)
    workspace = Workspace(model, pad_token_id=tokenizer.pad_token_id)
    codec = FixedPoint(fraction_bits=fraction_bits_for(arguments.total_learning_rate))
    trainer = TaskTrainer(workspace, tasks, tokenizer, arguments, codec)
    workspace.reset()  # the bare loop, too, needs weights that it may change
    total = DeltaAccumulator(workspace.shapes)
    ids = list(tasks.task_ids)
    for task_id in ids:
        trainer.encoded(task_id)  # both sides start from tokenised examples
    share = max(1, len(ids) // (rounds + 1))
    bare_seconds, own, theirs = [], [], []
    for number in range(rounds + 1):
        part = ids[number * share : (number + 1) * share]
        if not part:
            break
        batches = {task_id: workspace.batch(trainer.encoded(task_id).train) for task_id in part}
        taken = (
            timed(lambda part=part, batches=batches: _bare(workspace, [batches[one] for one in part], arguments)),
            timed(lambda part=part: [total.add(trainer.vector(one)) for one in part]),
            timed(lambda part=part: _with_trainer(workspace, trainer, part, arguments)),
        )
        if number:
            for seconds, found in zip(taken, (bare_seconds, own, theirs), strict=True):
                found.append(seconds)
    what = f"finetune a task of {_BATCH} examples, {_FINETUNE_STEPS} steps, {workspace.num_parameters:,} weights"
    return [
        Row(what=what, against="the bare loop, fused AdamW, batches ready", values=ratios(own, bare_seconds),
            target=1.05, note=f"{share} tasks a round"),
        Row(what=f"transformers.Trainer, one for each of {share * (rounds + 1)} tasks", against="ours",
            values=ratios(theirs, own), target=3, at_least=True),
        Row(what="… the same", against="the bare loop", values=ratios(theirs, bare_seconds)),
    ]  # fmt: skip


def _bare(workspace: Workspace, batches: list[dict[str, torch.Tensor]], arguments: ClamuArguments) -> None:
    parameters = list(workspace.parameters.values())
    workspace.model.train()
    for batch in batches:
        optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.0, fused=True)
        for _ in range(arguments.finetune_steps):
            workspace.model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _with_trainer(workspace: Workspace, trainer: TaskTrainer, part: list[str], arguments: ClamuArguments) -> None:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        for task_id in part:
            workspace.reset()
            examples = list(trainer.encoded(task_id).train)
            given = transformers.TrainingArguments(
                folder, max_steps=arguments.finetune_steps, per_device_train_batch_size=_BATCH, use_cpu=True,
                learning_rate=arguments.learning_rate, lr_scheduler_type="constant", save_strategy="no",
                logging_strategy="no", report_to=[], disable_tqdm=True,
            )  # fmt: skip
            transformers.Trainer(workspace.model, given, train_dataset=examples, data_collator=workspace.batch).train()
