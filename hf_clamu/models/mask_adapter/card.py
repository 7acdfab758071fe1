"""The card of mask adapters that are saved alone."""

from __future__ import annotations

from pathlib import Path

from hf_clamu.checkpoint.layout import CARD_NAME

__all__ = ["correct_card"]


def correct_card(folder: Path, base_model: str | None) -> None:
    """Let the card that PEFT has just written name what its adapters are adapters of.

    PEFT names the model that it wraps, a path of this machine if that came from a folder. A mask is of no use without
    the merged model whose delta it cuts, and says something about it. A card that names that one is found by who looks
    for what was made of it, as `clamu erase` does.

    Args:
        folder (`Path`): where the adapters are saved; one without a card of PEFT's is left alone.
        base_model (`str`, *optional*): Hub id of the merged model, or of the base model; `None` if neither is there.
    """
    from huggingface_hub import ModelCard

    path = folder / CARD_NAME
    if not path.is_file():
        return
    card = ModelCard.load(path)
    if card.data.get("library_name") != "peft":
        return
    tags = [tag for tag in card.data.get("tags") or [] if not tag.startswith("base_model:")]
    relation = None
    if base_model is not None:
        relation = "adapter"
        tags.append(f"base_model:adapter:{base_model}")
    card.data["base_model"], card.data["base_model_relation"] = base_model, relation
    card.data["tags"] = sorted({*tags, "clamu"})
    card.save(path)
