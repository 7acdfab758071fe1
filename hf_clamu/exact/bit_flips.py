"""Flipping the bits of weights whose mask changes, in passes that can be interrupted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_clamu.exact.bitmask import MaskBits
from hf_clamu.exact.passes import entries_per_pass

__all__ = ["ENTRIES_ON_CPU", "FlipBuffer", "Transition", "mixed_bits", "same_bits"]

# Weights per pass on the CPU, a multiple of 64.
ENTRIES_ON_CPU = 1 << 20
_EIGHT_WEIGHTS = {1: torch.int64, 2: torch.complex128}


@dataclass(slots=True)
class Transition:
    """A parameter between two masks: its first `num_done` weights have the new one."""

    old: MaskBits
    new: MaskBits
    num_done: int = 0


class FlipBuffer:
    """Scratch memory for flips of one type on one device.

    Args:
        dtype (`torch.dtype`): the integer type of the weights' bits.
        device (`torch.device`): where they are.
    """

    @torch.inference_mode(False)  # tensors made in inference mode could not be written to outside of it
    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._size = size = entries_per_pass(device, ENTRIES_ON_CPU)
        self._bytes = torch.zeros(size // 8, dtype=torch.uint8, device=device)
        self._expanded = torch.empty(size, dtype=dtype, device=device)
        self._table: torch.Tensor | None = None
        if (width := dtype.itemsize) <= 2:
            # Shifts of short integers are slow: for every byte of mask bits its eight weights, as one wide number that
            # `gather` copies as it is.
            byte = torch.arange(256).unsqueeze(1).bitwise_right_shift(torch.arange(8)).bitwise_and_(1)
            wide = _EIGHT_WEIGHTS[width]
            self._table = byte.neg_().to(dtype).view(wide).view(-1).to(device)
            self._wide = self._expanded.view(wide)
            self._index = torch.empty(size // 8, dtype=torch.int64, device=device)
        else:
            # A word of mask bits for as many weights; shifted left by these, the bit of each weight becomes the sign.
            self._words = self._bytes.view(dtype)
            width = 8 * self._words.element_size()
            self._shifts = torch.arange(width - 1, -1, -1, dtype=dtype, device=device)

    def flip(self, flat: torch.Tensor, flips: torch.Tensor, transition: Transition) -> int:
        """Flip the bits of weights whose mask changes, and return in how many passes.

        Args:
            flat (`torch.Tensor` of shape `(numel,)`, integer): bits of the weights.
            flips (`torch.Tensor` of shape `(numel,)`, integer): what a change of the mask flips.
            transition (`Transition`): the masks before and afterwards, one of them with bits; it counts the weights
                that are done.
        """
        old, new = transition.old, transition.new
        if isinstance(new, int):
            old, new = new, old
        assert isinstance(new, torch.Tensor), "one of both masks has bits"
        new, old = new.to(flips.device), old if isinstance(old, int) else old.to(flips.device)
        count = 0
        for start in range(0, flat.numel(), self._size):
            stop = min(start + self._size, flat.numel())
            packed = slice(start // 8, (stop + 7) // 8)
            bits = self._bytes[: packed.stop - packed.start]
            torch.bitwise_xor(new[packed], old if isinstance(old, int) else old[packed], out=bits)
            changed = self._expand(bits.numel())[: stop - start]
            flat[start:stop].bitwise_xor_(changed.bitwise_and_(flips[start:stop]))
            transition.num_done = stop
            count += 1
        return count

    def _expand(self, num_bytes: int) -> torch.Tensor:
        """Return an integer for each bit: -1, which is all bits, for 1, and 0 for 0."""
        if self._table is not None:
            index = self._index[:num_bytes].copy_(self._bytes[:num_bytes])
            torch.gather(self._table, 0, index, out=self._wide[:num_bytes])
            return self._expanded[: 8 * num_bytes]
        width = self._shifts.numel()
        words = self._words[: -(-8 * num_bytes // width)].unsqueeze(1)
        expanded = self._expanded[: words.numel() * width].view(-1, width)
        return torch.bitwise_left_shift(words, self._shifts, out=expanded).bitwise_right_shift_(width - 1).view(-1)


def same_bits(first: MaskBits, second: MaskBits) -> bool:
    """Whether two masks of one parameter are equal."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first == second
    return torch.equal(first, second.to(first.device))


def mixed_bits(transition: Transition, num_new: int, size: int) -> torch.Tensor:
    """Return mask bits of which the first `num_new`, a multiple of 8, are the new ones and the rest the old ones."""

    def full(bits: MaskBits) -> torch.Tensor:
        if isinstance(bits, int):
            return torch.full(((size + 7) // 8,), bits, dtype=torch.uint8)
        return bits.cpu()

    return torch.cat([full(transition.new)[: num_new // 8], full(transition.old)[num_new // 8 :]])
