"""Serve many masked models from one set of live weights by flipping bits in place.

With one scaling coefficient for all clusters every live weight has only two possible values, `W0` and
`W1 = W0 + alpha * delta`. The engine keeps `X = bits(W0) ^ bits(W1)`; a switch from one mask to another is

    P ^= X & expand(mask_old ^ mask_new)

so the all-zero mask gives `W0` back bit for bit, in fp32, bf16 and fp16, and memory is twice the weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, WeightsChangedError
from hf_clamu.exact.bitmask import check_padding
from hf_clamu.exact.digest import contents_of
from hf_clamu.exact.fixed_point import FixedPoint
from hf_clamu.exact.passes import bits_dtype, entries_per_pass

__all__ = ["ALL_WEIGHTS", "NO_WEIGHTS", "PackedMask", "WeightSwitch"]

# Weights per pass on the CPU, a multiple of 64.
_CHUNK = 1 << 20
# Packed bits, or 0 or 255 for a mask without any.
_Bits: TypeAlias = torch.Tensor | int
# Parameters that a switch has stamped, by their id.
_WATCHED: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()


def _count_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    # Fused optimizers, the default of transformers' Trainer among them, write without counting a version.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            watched = _WATCHED.get(id(parameter))
            if watched is not None and watched is parameter:
                increment_version(watched)


register_optimizer_step_post_hook(_count_step)


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A mask over all parameters that take part.

    Args:
        bits (*mapping* of `str` to `torch.Tensor` of shape `(ceil(numel / 8),)`, uint8, *optional*):
            Packed bits per parameter.
        fill (`int`, *optional*): instead of bits, 255 for the mask of ones or 0 for the mask of zeros.
    """

    bits: Mapping[str, torch.Tensor] | None = None
    fill: int = 0

    def __post_init__(self) -> None:
        if self.fill not in (0, 255):
            raise ValueError(f"fill must be 0 (no weights) or 255 (all weights), got {self.fill!r}.")


ALL_WEIGHTS = PackedMask(fill=255)
NO_WEIGHTS = PackedMask(fill=0)


class WeightSwitch:
    """Flips live parameters between `W0` and `W0 + alpha * delta` under packed masks.

    The parameters must hold `W0` when the switch is made. A weight that somebody else changes afterwards (an optimizer
    step, a cast, a resize) is noticed before any weight is touched, and refused.

    Args:
        parameters (*mapping* of `str` to `torch.nn.Parameter`): live parameters; tied ones once.
        delta (*mapping* of `str` to `torch.Tensor`, integer): the merged delta of those that take part.
        alpha (`float`): the scaling coefficient.
        codec (`FixedPoint`): the grid of `delta`.
        dtype (`torch.dtype`, *optional*): cast the live parameters to this type; both values are computed in the
            parameters' own type and cast once.
        uncast (*collection* of `str`): parameters that keep their type all the same.
        contents (*mapping* of `str` to `bytes`, *optional*): `content_of` the parameters, if somebody has computed it.

    Example:

    ```python
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> parameters = dict(layer.named_parameters())
    >>> switch = WeightSwitch(parameters, {"weight": torch.tensor([[1, 2]])}, 1.0, FixedPoint(fraction_bits=0))
    >>> switch.select(parameters, ALL_WEIGHTS)
    >>> layer.weight.tolist()
    [[2.0, 3.0]]
    >>> switch.select(parameters, PackedMask(bits={"weight": torch.tensor([2], dtype=torch.uint8)}))
    >>> layer.weight.tolist()
    [[1.0, 3.0]]

    ```
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        delta: Mapping[str, torch.Tensor],
        alpha: float,
        codec: FixedPoint,
        *,
        dtype: torch.dtype | None = None,
        uncast: Collection[str] = (),
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        self._flips: dict[str, torch.Tensor] = {}
        self._kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._stamps: dict[str, tuple[object, ...]] = {}
        self._rooms: dict[tuple[torch.dtype, torch.device], _Room] = {}
        self._selected = NO_WEIGHTS
        bases: dict[str, torch.Tensor] = {}
        known = {name: contents[name] for name in delta if name in contents} if contents is not None else {}
        for name in sorted(delta):
            parameter = _find(parameters, name)
            if delta[name].shape != parameter.shape:
                raise IncompatibleBaseError(
                    f"The parameter {name!r} has shape {tuple(parameter.shape)}, but its merged delta has "
                    f"{tuple(delta[name].shape)}. Take the base model that the delta was made for."
                )
            flat = parameter.detach().reshape(-1)
            served = codec.apply(flat, delta[name].reshape(-1), alpha, parameter.dtype)
            if dtype is not None and dtype != parameter.dtype and name not in uncast:
                parameter.data = parameter.detach().to(dtype)
                known.pop(name, None)
                flat, served = parameter.detach().reshape(-1), served.to(dtype)
            # Only bits are compared and flipped, so -0.0 and NaN need no special care.
            flips = served.view(bits_dtype(parameter.dtype))
            self._flips[name] = flips.bitwise_xor_(flat.view(flips.dtype))
            if name not in known:
                bases[name] = flat
            self._kinds[name] = (parameter.shape, parameter.dtype)
            self._stamps[name] = _stamp(parameter)
        # What a weight that was moved or copied is recognised by.
        self._base_contents = known | contents_of(bases)

    def __getstate__(self) -> dict[str, object]:
        # A copy belongs to other parameters: it recognises them by digest.
        return {**self.__dict__, "_stamps": {}, "_rooms": {}}

    @property
    def selected(self) -> PackedMask:
        """The mask that the live weights hold now."""
        return self._selected

    def select(self, parameters: Mapping[str, torch.nn.Parameter], mask: PackedMask) -> None:
        """Bring the live weights under another mask.

        Args:
            parameters (*mapping* of `str` to `torch.nn.Parameter`): the same parameters, or a copy of them (a
                deepcopied or moved model), that the switch was made for.
            mask (`PackedMask`): the mask to select.

        Raises:
            WeightsChangedError: if a weight was changed underneath; then no weight has been touched.
            CheckpointFormatError: if the mask does not fit a parameter.
        """
        self.check(parameters)
        if mask.bits is not None:
            for name, flips in self._flips.items():
                if name not in mask.bits:
                    raise CheckpointFormatError(
                        f"The mask has no bits for the parameter {name!r}, but the merged delta has. The mask was "
                        "made for another model: take the one that was saved with this delta."
                    )
                check_padding(name, mask.bits[name], flips.numel())
        if self._holds(mask):
            return
        for name, flips in self._flips.items():
            self._flip(parameters[name], flips, _bits_of(self._selected, name), _bits_of(mask, name))
        # Only now: if a flip is interrupted, the old stamps make the next check find the half-switched weights.
        if mask.bits is not None:
            # A copy: the caller's tensors may be loaded over, and the way back needs the bits that were applied.
            mask = PackedMask(bits={name: mask.bits[name].clone() for name in self._flips})
        self._selected = mask
        self._stamps = {name: _stamp(parameters[name]) for name in self._flips}

    def check(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Check that every live weight holds what the last `select` left there.

        An untouched parameter is recognised by its storage, layout and version counter, which counts the steps of all
        optimizers of torch, fused ones included. One that moved (another
        device, a copy of the model) has its base bits recomputed and compared by digest. Edits through `.data` do not
        count as a version: what changes values that way, with the storage kept, goes unnoticed.

        Raises:
            WeightsChangedError: naming the first parameter that differs.
        """
        for name, flips in self._flips.items():
            parameter = _find(parameters, name)
            if _stamp(parameter) == self._stamps.get(name):
                continue
            if (parameter.shape, parameter.dtype) != self._kinds[name]:
                raise WeightsChangedError(
                    f"The parameter {name!r} now has shape {tuple(parameter.shape)} and type {parameter.dtype}, which "
                    f"is not what the merged delta was attached to. {_WAY_OUT}"
                )
            if flips.device != parameter.device:
                self._flips[name] = flips = flips.to(parameter.device)
            base = parameter.detach().clone(memory_format=torch.contiguous_format)
            self._flip(base, flips, _bits_of(self._selected, name), 0)
            if contents_of({name: base})[name] != self._base_contents[name]:
                raise WeightsChangedError(
                    f"The parameter {name!r} was changed since the last switch (training, in-place edits or a cast?), "
                    f"so its base weights can no longer be recovered. {_WAY_OUT}"
                )
            self._stamps[name] = _stamp(parameter)

    def _holds(self, mask: PackedMask) -> bool:
        old, new = self._selected, mask
        if old.bits is None or new.bits is None:
            return old.bits is new.bits and old.fill == new.fill
        return all(torch.equal(old.bits[name], new.bits[name].to(old.bits[name].device)) for name in self._flips)

    def _flip(self, parameter: torch.Tensor, flips: torch.Tensor, old: _Bits, new: _Bits) -> None:
        if isinstance(old, int) and isinstance(new, int) and old == new:
            return
        live = parameter.detach()
        flat = (live if live.is_contiguous() else live.contiguous()).view(-1).view(flips.dtype)
        if isinstance(old, int) and isinstance(new, int):
            flat.bitwise_xor_(flips)
        else:
            key = (flips.dtype, flips.device)
            if key not in self._rooms:
                self._rooms[key] = _Room(*key)
            self._rooms[key].flip(flat, flips, old, new)
        if not live.is_contiguous():
            live.copy_(flat.view(live.dtype).view(live.shape))


class _Room:
    """Memory that flips of one type and device use again and again, and what they are done with.

    Args:
        dtype (`torch.dtype`): the integer type of the weights' bits.
        device (`torch.device`): where they are.
    """

    @torch.inference_mode(False)  # what is made in it could not be written to outside
    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._size = size = entries_per_pass(device, _CHUNK)
        self._bytes = torch.zeros(size // 8, dtype=torch.uint8, device=device)
        self._spread = torch.empty(size, dtype=dtype, device=device)
        self._table: torch.Tensor | None = None
        if self._spread.element_size() <= 2:
            # Shifts of short integers are slow: a row of this for every byte of mask bits.
            byte = torch.arange(256).unsqueeze(1).bitwise_right_shift(torch.arange(8)).bitwise_and_(1)
            self._table = byte.neg_().to(dtype).to(device)
            self._index = torch.empty(size // 8, dtype=torch.int32, device=device)
        else:
            # A word of mask bits for as many weights; shifted left by these, the bit of each weight becomes the sign.
            self._words = self._bytes.view(dtype)
            width = 8 * self._words.element_size()
            self._shifts = torch.arange(width - 1, -1, -1, dtype=dtype, device=device)

    def flip(self, flat: torch.Tensor, flips: torch.Tensor, old: _Bits, new: _Bits) -> None:
        """Flip the bits of weights whose mask changes.

        Args:
            flat (`torch.Tensor` of shape `(numel,)`, integer): bits of the weights.
            flips (`torch.Tensor` of shape `(numel,)`, integer): what a change of the mask flips.
            old (`torch.Tensor` of shape `(ceil(numel / 8),)`, uint8, or `int`): the packed mask before, or 0 or 255.
            new: the packed mask afterwards.
        """
        if isinstance(new, int):
            old, new = new, old
        assert isinstance(new, torch.Tensor), "one of both masks has bits"
        new, old = new.to(flips.device), old if isinstance(old, int) else old.to(flips.device)
        for start in range(0, flat.numel(), self._size):
            stop = min(start + self._size, flat.numel())
            packed = slice(start // 8, (stop + 7) // 8)
            bits = self._bytes[: packed.stop - packed.start]
            torch.bitwise_xor(new[packed], old if isinstance(old, int) else old[packed], out=bits)
            changed = self._spread_out(bits.numel())[: stop - start]
            flat[start:stop].bitwise_xor_(changed.bitwise_and_(flips[start:stop]))

    def _spread_out(self, num_bytes: int) -> torch.Tensor:
        """Return an integer for each bit: -1, which is all bits, for 1, and 0 for 0."""
        if self._table is not None:
            index, rows = self._index[:num_bytes], self._spread[: 8 * num_bytes].view(-1, 8)
            torch.index_select(self._table, 0, index.copy_(self._bytes[:num_bytes]), out=rows)
            return rows.view(-1)
        width = self._shifts.numel()
        words = self._words[: -(-8 * num_bytes // width)].unsqueeze(1)
        spread = self._spread[: words.numel() * width].view(-1, width)
        return torch.bitwise_left_shift(words, self._shifts, out=spread).bitwise_right_shift_(width - 1).view(-1)


_WAY_OUT = (
    "Load the model again with ClamuModel.from_pretrained (with dtype= for another type); to train further on a "
    "cluster, export it first."
)


def _find(parameters: Mapping[str, torch.nn.Parameter], name: str) -> torch.nn.Parameter:
    parameter = parameters.get(name)
    if parameter is None:
        raise WeightsChangedError(f"The model no longer has the parameter {name!r} of the merged delta. {_WAY_OUT}")
    if parameter.is_meta:
        raise WeightsChangedError(
            f"The parameter {name!r} has no data here (meta device, offloaded). Clusters are switched on weights in "
            "memory: load without offloading."
        )
    return parameter


def _stamp(parameter: torch.Tensor) -> tuple[object, ...]:
    _WATCHED[id(parameter)] = parameter  # from now on its version must count optimizer steps
    # The storage and not its address: assigning to `.data` keeps the version, and allocators reuse freed addresses.
    storage = weakref.ref(parameter.untyped_storage())
    place = (parameter.dtype, parameter.shape, parameter.stride(), parameter.data_ptr())
    return (storage, *place, parameter._version)


def _bits_of(mask: PackedMask, name: str) -> torch.Tensor | int:
    return mask.fill if mask.bits is None else mask.bits[name]
