"""The model card of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_clamu.models.configuration_clamu import ClamuConfig

__all__ = ["model_card"]

_PIPELINES = {
    "sequence-classification": "text-classification",
    "causal-lm": "text-generation",
    "seq2seq-lm": "text2text-generation",
    "token-classification": "token-classification",
    "image-classification": "image-classification",
}


def model_card(config: ClamuConfig, num_parameters: int) -> str:
    """Write the card: a function of the configuration alone, without task ids.

    Args:
        config (`ClamuConfig`): of the saved model.
        num_parameters (`int`): weights that take part in merging.
    """
    from huggingface_hub import ModelCardData

    spec: Mapping[str, Any] = config.task_spec or {}
    arguments: Mapping[str, Any] = config.arguments or {}
    base: Mapping[str, Any] = config.base_model or {}
    data = ModelCardData(
        base_model=base.get("name_or_path") or None,
        library_name="hf-clamu",
        pipeline_tag=_PIPELINES.get(str(spec.get("kind"))),
        tags=["clamu", "model-merging", "machine-unlearning", "peft"],
    )
    mask_bytes = (num_parameters + 7) // 8 * (config.num_clusters if arguments.get("localization") != "global" else 0)
    name = base.get("name_or_path")
    origin = f"`{name}`" if name else f"a `{config.architecture}` (in `base_model/`)"
    return f"""---
{data.to_yaml()}
---

# A ClAMU model

{config.num_tasks} tasks, finetuned separately from {origin}, merged into one delta over {num_parameters:,} weights and
served through {config.num_clusters} clusters (clustering `{arguments.get("clustering")}`, localization
`{arguments.get("localization")}`, scaling coefficient {config.alpha:.6g}). Masks take {mask_bytes:,} bytes.

```python
from hf_clamu import ClamuModel

model = ClamuModel.from_pretrained("path/or/id/of/this/repo")
model.set_cluster(0)
model.unmerge_task("id of a task")  # the same bytes as a build that never had it
```

`ledger.json` lists the merged tasks with the SHA-256 of their task vectors and of their tokenised data. Any task can
be forgotten: what is left is byte for byte what a build without it gives, with the same recipe and environment.
"""
