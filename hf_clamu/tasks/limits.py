"""What texts a model can take: its positions and its token embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_clamu.errors import TaskDataError

__all__ = ["ModelLimits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLimits:
    """The limits of one model.

    Args:
        positions (`int`, *optional*): the longest text in tokens, if there is a limit.
        is_table (`bool`): whether positions are a table of embeddings, beyond which nothing can be computed; other
            kinds of positions continue, untrained.
        answers (`int`, *optional*): the longest completion of an encoder-decoder in tokens.
        embeddings (`int`, *optional*): the number of rows of the token embeddings.
        starts_at_padding (`bool`): whether positions count from behind the padding token's number.
    """

    positions: int | None = None
    is_table: bool = False
    answers: int | None = None
    embeddings: int | None = None
    starts_at_padding: bool = False

    @classmethod
    def of(cls, model: Any) -> ModelLimits:
        """Read them from a model.

        Args:
            model (`transformers.PreTrainedModel`): on any device, the meta device included.
        """
        try:
            weight = getattr(model.get_input_embeddings(), "weight", None)
        except NotImplementedError:
            weight = None
        tables = {name: module for name, module in model.named_modules() if _is_position_table(name, module)}
        lengths = {name: _num_positions(module) for name, module in tables.items()}
        has_decoder = getattr(model.config, "is_encoder_decoder", False)
        of_decoder = {name for name in tables if has_decoder and "decoder" in name}
        stated = getattr(model.config, "max_position_embeddings", None)
        if not isinstance(stated, int) or stated <= 0:
            stated = None  # some say with -1 that there is no limit
        return cls(
            positions=min((length for name, length in lengths.items() if name not in of_decoder), default=stated),
            is_table=bool(tables),
            answers=min((lengths[name] for name in of_decoder), default=None),
            starts_at_padding=any(
                table.padding_idx is not None and not hasattr(table, "offset") for table in tables.values()
            ),
            embeddings=len(weight) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None,
        )

    def check_ids(self, ids: list[int], tokenizer: Any) -> None:
        """Check that the model has an embedding for every token.

        Raises:
            TaskDataError: naming the token; the caller adds task and row.
        """
        greatest = max(ids, default=0)
        if self.embeddings is not None and greatest >= self.embeddings:
            token = tokenizer.convert_ids_to_tokens(greatest)
            raise TaskDataError(
                f"the tokenizer has the number {greatest} for {token!r}, and the model has embeddings for 0 to "
                f"{self.embeddings - 1} alone. Give the tokenizer that the model was made for, or enlarge the model "
                "first (resize_token_embeddings)"
            )

    def check_length(self, length: int, max_length: int | None, *, is_answer: bool = False) -> None:
        """Check that the model has a position for every token.

        Args:
            length (`int`): of an encoded text.
            max_length (`int`, *optional*): the limit that the caller set.
            is_answer (`bool`): whether it is what an encoder-decoder is to write.

        Raises:
            TaskDataError: the caller adds task and row.
        """
        limit, what = (self.answers, "completion") if is_answer else (self.positions, "text")
        if limit is None or length <= limit or (max_length is not None and not self.is_table):
            return
        raise TaskDataError(
            f"the {what} has {length} tokens, and the model takes {limit}. Set max_length to {limit} or less (in a "
            "recipe: in its data section), which cuts longer texts, or shorten it"
        )


def _is_position_table(name: str, module: Any) -> bool:
    attribute = name.rsplit(".", 1)[-1]
    return isinstance(module, torch.nn.Embedding) and ("position" in attribute or attribute == "wpe")


def _num_positions(table: torch.nn.Embedding) -> int:
    # RoBERTa and similar models count positions from behind the padding token; OPT and BART from an offset.
    offset = getattr(table, "offset", None)
    if isinstance(offset, int):
        return int(table.num_embeddings - offset)
    return int(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
