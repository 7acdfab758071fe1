"""Serve many masked models from one set of live weights by flipping bits in place.

With one scaling coefficient for all clusters every live weight has only two possible values, `W0` and
`W1 = W0 + alpha * delta`. The engine keeps `X = bits(W0) ^ bits(W1)`; a switch from one mask to another is

    P ^= X & expand(mask_old ^ mask_new)

so the all-zero mask gives `W0` back bit for bit, in fp32, bf16 and fp16, and memory is twice the weights.

Which mask a weight holds is kept per parameter and renewed as each is flipped, and what is flipped was recognised just
before. So a switch that stops in the middle leaves weights that are known, and the next one starts from there.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, WeightsChangedError
from hf_clamu.exact.bitmask import check_padding
from hf_clamu.exact.digest import contents_of
from hf_clamu.exact.fixed_point import FixedPoint
from hf_clamu.exact.guard import Guard
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
        cluster (`int`, *optional*): the cluster that it is of.
    """

    bits: Mapping[str, torch.Tensor] | None = None
    fill: int = 0
    cluster: int | None = None

    def __post_init__(self) -> None:
        if self.fill not in (0, 255):
            raise ValueError(f"fill must be 0 (no weights) or 255 (all weights), got {self.fill!r}.")


ALL_WEIGHTS = PackedMask(fill=255)
NO_WEIGHTS = PackedMask(fill=0)


@dataclass(slots=True)
class _Move:
    """One parameter on its way from mask bits to others: the first `done` weights are there."""

    old: _Bits
    new: _Bits
    done: int = 0


class WeightSwitch:
    """Flips live parameters between `W0` and `W0 + alpha * delta` under packed masks.

    The parameters must hold `W0` when the switch is made. A weight that somebody else changes afterwards (an optimizer
    step, a cast, a resize) is noticed before any weight is touched, and refused. Threads switch one after the other;
    to use the weights before the next one switches, hold the `guard`.

    Args:
        parameters (*mapping* of `str` to `torch.nn.Parameter`): live parameters; tied ones once.
        delta (*mapping* of `str` to `torch.Tensor`, integer): the merged delta of those that take part.
        alpha (`float`): the scaling coefficient.
        codec (`FixedPoint`): the grid of `delta`.
        dtype (`torch.dtype`, *optional*): cast the live parameters to this type; both values are computed in the
            parameters' own type and cast once.
        uncast (*collection* of `str`): parameters that keep their type all the same.
        contents (*mapping* of `str` to `bytes`, *optional*): `content_of` the parameters, if somebody has computed it.
        guard (`Guard`, *optional*): of the live model; by default one of its own.

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
        guard: Guard | None = None,
    ) -> None:
        self.guard = Guard() if guard is None else guard
        self._flips: dict[str, torch.Tensor] = {}
        self._kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._stamps: dict[str, tuple[Any, ...]] = {}
        self._rooms: dict[tuple[torch.dtype, torch.device], _Room] = {}
        # What each parameter holds, and those that an interrupted switch left in between.
        self._held: dict[str, _Bits] = dict.fromkeys(sorted(delta), 0)
        self._moves: dict[str, _Move] = {}
        self._selected = NO_WEIGHTS
        self._is_settled = True
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
        """The mask that was selected last; unless `is_settled`, the live weights may not hold it."""
        return self._selected

    @property
    def is_settled(self) -> bool:
        """Whether all live weights hold the selected mask: no switch was interrupted, and then could not go back."""
        return self._is_settled

    def select(self, parameters: Mapping[str, torch.nn.Parameter], mask: PackedMask) -> None:
        """Bring the live weights under another mask.

        A switch that is interrupted goes back. If that fails, too, `is_settled` is false, and the next one starts from
        what it finds.

        Args:
            parameters (*mapping* of `str` to `torch.nn.Parameter`): the same parameters, or a copy of them (a
                deepcopied or moved model), that the switch was made for.
            mask (`PackedMask`): the mask to select.

        Raises:
            WeightsChangedError: if a weight was changed underneath; then no weight has been touched.
            CheckpointFormatError: if the mask does not fit a parameter.
        """
        with self.guard.lock:
            self.check(parameters)
            if mask.bits is not None:
                for name, flips in self._flips.items():
                    if name not in mask.bits:
                        raise CheckpointFormatError(
                            f"The mask has no bits for the parameter {name!r}, but the merged delta has. The mask was "
                            "made for another model: take the one that was saved with this delta."
                        )
                    check_padding(name, mask.bits[name], flips.numel())
            self._is_settled = False
            try:
                self._arrive(parameters, mask)
            except BaseException:  # an interruption, or no memory left
                with suppress(WeightsChangedError):
                    self.check(parameters)
                    self._arrive(parameters, self._selected)
                raise

    def check(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Check that every live weight holds what the last `select` left there.

        An untouched parameter is recognised by its storage, layout and version counter, which counts the steps of all
        optimizers of torch, fused ones included. One that moved (another
        device, a copy of the model) has its base bits recomputed and compared by digest, and so has one whose flip was
        interrupted. Edits through `.data` do not
        count as a version: what changes values that way, with the storage kept, goes unnoticed.

        Raises:
            WeightsChangedError: naming the first parameter that differs.
        """
        with self.guard.lock:
            for name, flips in self._flips.items():
                parameter = _find(parameters, name)
                if name not in self._moves and _stamp(parameter) == self._stamps.get(name):
                    continue
                if (parameter.shape, parameter.dtype) != self._kinds[name]:
                    raise WeightsChangedError(
                        f"The parameter {name!r} now has shape {tuple(parameter.shape)} and type {parameter.dtype}, "
                        f"which is not what the merged delta was attached to. {_WAY_OUT}"
                    )
                if flips.device != parameter.device:
                    self._flips[name] = flips.to(parameter.device)
                self._stamps.pop(name, None)
                stamp = _stamp(parameter)
                self._held[name] = self._recognised(name, parameter)
                self._moves.pop(name, None)
                self._stamps[name] = stamp

    def _recognised(self, name: str, parameter: torch.nn.Parameter) -> _Bits:
        """Return the mask bits under which a parameter's base weights are those that were merged into."""
        flips = self._flips[name]
        for held in self._candidates(name, parameter):
            base = parameter.detach().clone(memory_format=torch.contiguous_format)
            self._flip(base, flips, _Move(held, 0))
            if contents_of({name: base})[name] == self._base_contents[name]:
                return held
        raise WeightsChangedError(
            f"The parameter {name!r} was changed since the last switch (training, in-place edits or a cast?), so its "
            f"base weights can no longer be recovered. {_WAY_OUT}"
        )

    def _candidates(self, name: str, parameter: torch.nn.Parameter) -> list[_Bits]:
        """Return what a parameter may hold: after an interruption the last pass may have been made or not."""
        move, size = self._moves.get(name), parameter.numel()
        if move is None:
            return [self._held[name]]
        between = {move.done, move.done + entries_per_pass(parameter.device, _CHUNK)}
        mixed = [_mixed(move, place, size) for place in sorted(between) if 0 < place < size]
        return [move.new, move.old, *mixed]

    def _arrive(self, parameters: Mapping[str, torch.nn.Parameter], mask: PackedMask) -> None:
        # The bits of parameters are copies: the caller's tensors may be loaded over.
        for name, flips in self._flips.items():
            held, wanted = self._held[name], _bits_of(mask, name)
            if _equal(held, wanted):
                continue
            parameter = parameters[name]
            move = _Move(held, wanted if isinstance(wanted, int) else wanted.clone())
            known = self._stamps.pop(name)
            self._moves[name] = move
            count = self._flip(parameter, flips, move)
            stamp = _stamp(parameter)
            self._held[name] = move.new
            del self._moves[name]
            # Whoever writes at the same time counts more versions; the next check then looks at the bits.
            if stamp == (*known[:-1], known[-1] + (0 if torch.is_inference_mode_enabled() else count)):
                self._stamps[name] = stamp
        if mask.bits is not None:
            own = {name: bits for name, bits in self._held.items() if isinstance(bits, torch.Tensor)}
            mask = PackedMask(bits=own, cluster=mask.cluster)
        self._selected = mask
        self._is_settled = True

    def _flip(self, parameter: torch.Tensor, flips: torch.Tensor, move: _Move) -> int:
        """Flip a parameter's bits, and return how often it was written to."""
        if isinstance(move.old, int) and isinstance(move.new, int) and move.old == move.new:
            return 0
        live = parameter.detach()
        flat = (live if live.is_contiguous() else live.contiguous()).view(-1).view(flips.dtype)
        if isinstance(move.old, int) and isinstance(move.new, int):
            flat.bitwise_xor_(flips)
            count = 1
        else:
            key = (flips.dtype, flips.device)
            if key not in self._rooms:
                self._rooms[key] = _Room(*key)
            count = self._rooms[key].flip(flat, flips, move)
        if not live.is_contiguous():
            live.copy_(flat.view(live.dtype).view(live.shape))
            count = 1
        return count


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

    def flip(self, flat: torch.Tensor, flips: torch.Tensor, move: _Move) -> int:
        """Flip the bits of weights whose mask changes, and return in how many passes.

        Args:
            flat (`torch.Tensor` of shape `(numel,)`, integer): bits of the weights.
            flips (`torch.Tensor` of shape `(numel,)`, integer): what a change of the mask flips.
            move (`_Move`): the packed masks before and afterwards, one of them with bits; counts the weights done.
        """
        old, new = move.old, move.new
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
            changed = self._spread_out(bits.numel())[: stop - start]
            flat[start:stop].bitwise_xor_(changed.bitwise_and_(flips[start:stop]))
            move.done = stop
            count += 1
        return count

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


def _stamp(parameter: torch.Tensor) -> tuple[Any, ...]:
    _WATCHED[id(parameter)] = parameter  # from now on its version must count optimizer steps
    # The storage and not its address: assigning to `.data` keeps the version, and allocators reuse freed addresses.
    storage = weakref.ref(parameter.untyped_storage())
    place = (parameter.dtype, parameter.shape, parameter.stride(), parameter.data_ptr())
    return (storage, *place, parameter._version)


def _bits_of(mask: PackedMask, name: str) -> torch.Tensor | int:
    return mask.fill if mask.bits is None else mask.bits[name]


def _equal(held: _Bits, wanted: _Bits) -> bool:
    if isinstance(held, int) or isinstance(wanted, int):
        return isinstance(held, int) and isinstance(wanted, int) and held == wanted
    return torch.equal(held, wanted.to(held.device))


def _mixed(move: _Move, place: int, size: int) -> torch.Tensor:
    """Return mask bits that are the new ones before a place, a multiple of 8, and the old ones from there."""

    def full(bits: _Bits) -> torch.Tensor:
        if isinstance(bits, int):
            return torch.full(((size + 7) // 8,), bits, dtype=torch.uint8)
        return bits.cpu()

    return torch.cat([full(move.new)[: place // 8], full(move.old)[place // 8 :]])
