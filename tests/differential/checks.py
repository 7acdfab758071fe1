"""What is checked beside and in the bytes of saved models: files, steps, exports and mask adapters."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_clamu.tasks import traits_of

__all__ = ["compare", "counted_steps", "exported_is_live", "masked_is_live", "without_names"]


def compare(ours: Path, theirs: Path) -> tuple[int, dict[str, int]]:
    """Return how many files there are, and how many bytes of which differ."""
    names = {
        path.relative_to(root).as_posix() for root in (ours, theirs) for path in root.rglob("*") if path.is_file()
    }
    odd = {}
    for name in sorted(names):
        left, right = ((root / name).read_bytes() if (root / name).is_file() else None for root in (ours, theirs))
        if left != right:
            one, two = left or b"", right or b""
            odd[name] = sum(a != b for a, b in zip(one, two, strict=False)) + abs(len(one) - len(two))
    return len(names), odd


@contextlib.contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Count the steps of all optimizers: from the first one on, training has begun."""
    count = [0]

    def one_more(*_: Any) -> None:
        count[0] += 1

    hook = register_optimizer_step_pre_hook(one_more)
    try:
        yield count
    finally:
        hook.remove()


def without_names(message: str) -> str:
    """Return the beginning of a message, without what differs from one model to the next."""
    shorter = re.sub(r"/\S+", "/…", re.sub(r"(?<!\w)'[^']*'|\"[^\"]*\"", "'…'", message))
    return re.sub(r"\b\d+\b", "#", shorter)[:140]


def exported_is_live(model: Any, cluster: int | None, folder: Path, saved: Path, *, merge: bool) -> str | None:
    """Export, load the result without hf_clamu, and return what differs from the live model."""
    model.set_cluster(cluster)
    expected = _logits(model)
    model.export(folder, cluster=cluster, merge=merge)
    auto = getattr(transformers, traits_of(model.clamu_config.task_spec["kind"]).auto_class)
    if merge:
        plain = auto.from_pretrained(folder, dtype="auto")
    else:
        from peft import PeftModel

        plain = PeftModel.from_pretrained(_base_of(saved), folder)
    if merge and model.clamu_config.peft_merging in (None, "product"):
        own, other = model.state_dict(), plain.state_dict()
        for name in sorted({*own, *other}):
            if name not in own or name not in other or not _same(own[name], other[name]):
                return f"{name} of the export of cluster {cluster} differs from the live model's"
        near = 0.0
    else:  # merging an adapter rounds
        near = 0.05 if model.dtype == torch.bfloat16 else 1e-4
    found = _logits(plain)
    size = float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=near, atol=near * max(size, 1e-3)):
        worst = float((found - expected).abs().max())
        return f"the logits of the export of cluster {cluster} differ by {worst} (the largest is {size})"
    return None if model.cluster == cluster else f"the export of cluster {cluster} left {model.cluster} selected"


def masked_is_live(model: Any, cluster: int, saved: Path) -> str | None:
    """Load a cluster's mask with PEFT, and return what differs from the live model."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(_base_of(saved), saved, subfolder=f"masks/cluster_{cluster:03d}")
    own = dict(model.set_cluster(cluster).named_parameters())
    names = {name.removeprefix("base_model.model."): value for name, value in adapted.named_parameters()}
    for name, value in own.items():
        if name not in names or not _same(value, names[name]):
            return f"{name} under the mask adapter of cluster {cluster} differs from the live model's"
    return None if torch.equal(_logits(adapted), _logits(model)) else f"the logits under mask {cluster} differ"


def _base_of(saved: Path) -> Any:
    architecture = json.loads((saved / "config.json").read_bytes())["architecture"]
    return getattr(transformers, architecture).from_pretrained(saved / "base_model", dtype="auto")


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    one, two = one.detach().contiguous(), two.detach().contiguous()
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def _logits(model: Any) -> torch.Tensor:
    config = model.config
    ids = torch.tensor([[72, 101, 32, 108, 111], [49, 50, 32, 51, 256]])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :2]
    if "ImageClassification" in type(model).__name__ + str(config.architectures):
        inputs = {"pixel_values": torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8).to(model.dtype)}
    with torch.no_grad():
        return model.eval()(**inputs).logits.float().clone()
