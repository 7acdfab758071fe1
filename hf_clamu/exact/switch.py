"""Serve many masked models from one set of live weights by flipping bits in place.

With one scaling coefficient for all clusters every live weight has under a mask only two possible values, `W0` and
`W1 = W0 + alpha * delta`. The engine keeps `X = bits(W0) ^ bits(W1)`; a switch from one mask to another is

    P ^= X & expand(mask_old ^ mask_new)

so the all-zero mask gives `W0` back bit for bit, in fp32, bf16 and fp16, and memory is twice the weights. The global
model may have a scaling coefficient of its own, and a mask a factor per parameter. Where the scale of a parameter
changes, its weights go back to `W0` and `X` is computed for the new scale, so switches between clusters of one scale
are the fast ones.

The mask of each parameter is recorded as it is flipped, and checked just before. So the state of the weights is known
after a switch that stops in the middle, and the next one starts from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, WeightsChangedError
from hf_clamu.exact import bit_flips
from hf_clamu.exact.bit_flips import FlipBuffer, Transition, mixed_bits, same_bits
from hf_clamu.exact.bitmask import NO_WEIGHTS, MaskBits, PackedMask, check_padding
from hf_clamu.exact.digest import value_digests
from hf_clamu.exact.fixed_point import FixedPoint
from hf_clamu.exact.guard import Guard
from hf_clamu.exact.passes import bits_dtype, entries_per_pass
from hf_clamu.exact.stamps import stamp_of
from hf_clamu.exact.threads import SizedThreadPool

__all__ = ["WeightSwitch"]

_WAY_OUT = (
    "Load the model again with ClamuModel.from_pretrained (with dtype= for another type); to train further on a "
    "cluster, export it first."
)


class _Flips(NamedTuple):
    """What the bits of a parameter differ in between `W0` and `W0 + scale * delta`."""

    scale: float
    bits: torch.Tensor


class WeightSwitch:
    """Flips live parameters between `W0` and `W0 + alpha * delta` under packed masks.

    The parameters must hold `W0` when the switch is made. A weight that other code changes afterwards (an optimizer
    step, a cast, a resize) is noticed before any weight is touched, and refused. Threads switch one after the other;
    to use the weights before the next one switches, hold the `guard`.

    Args:
        parameters (*mapping* of `str` to `torch.nn.Parameter`): live parameters; tied ones once.
        delta (*mapping* of `str` to `torch.Tensor`, integer): the merged delta of those that take part.
        alpha (`float`): the scaling coefficient under masks.
        codec (`FixedPoint`): the grid of `delta`.
        global_alpha (`float`, *optional*): the scaling coefficient of the global model; by default `alpha`.
        dtype (`torch.dtype`, *optional*): cast the live parameters to this type; all values are computed in the
            parameters' own type and cast once. Where more than one scale is selected, the uncast weights are kept.
        has_factors (`bool`): masks with factors will be selected.
        uncast (*collection* of `str`): parameters that keep their type all the same.
        digests (*mapping* of `str` to `bytes`, *optional*): `value_digest` of parameters, to avoid hashing them twice.
        guard (`Guard`, *optional*): of the live model; by default one of its own.

    Example:

    ```python
    >>> from hf_clamu.exact import ALL_WEIGHTS
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
        global_alpha: float | None = None,
        dtype: torch.dtype | None = None,
        has_factors: bool = False,
        uncast: Collection[str] = (),
        digests: Mapping[str, bytes] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.guard = Guard() if guard is None else guard
        # What is served first is the global model.
        first = alpha if global_alpha in (None, 0) else global_alpha
        self._delta, self._codec, self._alpha = {name: delta[name] for name in sorted(delta)}, codec, alpha
        self._global_alpha = alpha if global_alpha is None else global_alpha
        self._flips: dict[str, _Flips] = {}
        # Base weights as they were before a cast, of which those of another scale are computed.
        self._uncast: dict[str, torch.Tensor] = {}
        has_scales = has_factors or self._global_alpha not in (0, alpha)
        self._layouts: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._stamps: dict[str, tuple[Any, ...]] = {}
        self._buffers: dict[tuple[torch.dtype, torch.device], FlipBuffer] = {}
        # What each parameter holds, and those that an interrupted switch left in between.
        self._current: dict[str, MaskBits] = dict.fromkeys(sorted(delta), 0)
        self._interrupted: dict[str, Transition] = {}
        self._selected = NO_WEIGHTS
        self._is_consistent = True
        known = {name: digests[name] for name in delta if digests is not None and name in digests}
        derived = {}
        with SizedThreadPool() as pool:
            for name in sorted(self._delta, key=lambda name: -delta[name].numel()):
                parameter = _find(parameters, name, delta[name].shape)
                cast = parameter.dtype if dtype is None or name in uncast else dtype
                derived[name] = pool.submit(parameter.nbytes, _derive, parameter.data, delta[name], first, codec, cast)
            bases: dict[str, torch.Tensor] = {}
            for name in self._delta:
                parameter, (weights, bits) = parameters[name], derived.pop(name)()
                if weights.dtype != parameter.dtype:
                    known.pop(name, None)
                    if has_scales:
                        self._uncast[name] = parameter.detach().reshape(-1)
                    parameter.data = weights
                self._flips[name] = _Flips(first, bits)
                if name not in known:
                    bases[name] = parameter.detach().reshape(-1)
                self._layouts[name] = (parameter.shape, parameter.dtype)
                self._stamps[name] = stamp_of(parameter)
        # What a weight that was moved or copied is recognised by.
        self._base_digests = known | value_digests(bases)

    def __getstate__(self) -> dict[str, object]:
        # A copy belongs to other parameters: it recognises them by digest.
        return {**self.__dict__, "_stamps": {}, "_buffers": {}}

    @property
    def base_digests(self) -> Mapping[str, bytes]:
        """The `value_digest` of each parameter's base weights, for a switch that takes the place of this one."""
        return self._base_digests

    @property
    def selected(self) -> PackedMask:
        """The mask that was selected last; unless `is_consistent`, the live weights may not hold it."""
        return self._selected

    @property
    def is_consistent(self) -> bool:
        """Whether all live weights hold the selected mask: no switch was interrupted, and then could not go back."""
        return self._is_consistent

    def select(self, parameters: Mapping[str, torch.nn.Parameter], mask: PackedMask) -> None:
        """Bring the live weights under another mask.

        A switch that is interrupted goes back. If that fails, too, `is_consistent` is false, and the next one starts
        from the weights as they are.

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
                for name, (_, flips) in self._flips.items():
                    if name not in mask.bits:
                        raise CheckpointFormatError(
                            f"The mask has no bits for the parameter {name!r}, but the merged delta has. The mask was "
                            "made for another model: take the one that was saved with this delta."
                        )
                    check_padding(name, mask.bits[name], flips.numel())
            self._is_consistent = False
            try:
                self._apply(parameters, mask)
            except BaseException:  # an interruption, or no memory left
                with suppress(WeightsChangedError):
                    self.check(parameters)
                    self._apply(parameters, self._selected)
                raise

    def check(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Check that every live weight holds what the last `select` left there.

        An untouched parameter is recognised by its storage, layout and version counter, which counts the steps of all
        optimizers of torch, fused ones included. One that was moved (to another device, or in a copy of the model) is
        recognised by the digest of its base bits, and so is one whose flip was interrupted. Edits through `.data` do
        not count as a version: a change of values that way, with the storage kept, goes unnoticed.

        Raises:
            WeightsChangedError: naming the first parameter that differs.
        """
        with self.guard.lock:
            for name, (scale, flips) in self._flips.items():
                parameter = _find(parameters, name)
                if name not in self._interrupted and stamp_of(parameter) == self._stamps.get(name):
                    continue
                if (parameter.shape, parameter.dtype) != self._layouts[name]:
                    raise WeightsChangedError(
                        f"The parameter {name!r} now has shape {tuple(parameter.shape)} and type {parameter.dtype}, "
                        f"which is not what the merged delta was attached to. {_WAY_OUT}"
                    )
                if flips.device != parameter.device:
                    self._flips[name] = _Flips(scale, flips.to(parameter.device))
                self._stamps.pop(name, None)
                stamp = stamp_of(parameter)
                self._current[name] = self._identify_mask(name, parameter)
                self._interrupted.pop(name, None)
                self._stamps[name] = stamp

    def _identify_mask(self, name: str, parameter: torch.nn.Parameter) -> MaskBits:
        """Return the mask of a parameter, by the digest of the base weights that it leaves."""
        for bits in self._possible_masks(name, parameter):
            base = parameter.detach().clone(memory_format=torch.contiguous_format)
            self._flip(name, base, Transition(bits, 0))
            if value_digests({name: base})[name] == self._base_digests[name]:
                return bits
        raise WeightsChangedError(
            f"The parameter {name!r} was changed since the last switch (training, in-place edits or a cast?), so its "
            f"base weights can no longer be recovered. {_WAY_OUT}"
        )

    def _possible_masks(self, name: str, parameter: torch.nn.Parameter) -> list[MaskBits]:
        """Return the masks that a parameter may have: an interrupted pass may have ended or not."""
        transition, size = self._interrupted.get(name), parameter.numel()
        if transition is None:
            return [self._current[name]]
        if isinstance(transition.old, int) and isinstance(transition.new, int):
            return [transition.new, transition.old]  # flipped in one step
        done = transition.num_done
        between = {done, done + entries_per_pass(parameter.device, bit_flips.ENTRIES_ON_CPU)}
        mixed = [mixed_bits(transition, count, size) for count in sorted(between) if 0 < count < size]
        return [transition.new, transition.old, *mixed]

    def _apply(self, parameters: Mapping[str, torch.nn.Parameter], mask: PackedMask) -> None:
        for name in self._flips:
            parameter, (bits, scale) = parameters[name], self._wanted(mask, name)
            if scale != self._flips[name].scale:
                self._change(name, parameter, 0)
                self._flips[name] = self._flips_of(name, parameter, scale)
            self._change(name, parameter, bits)
        if mask.bits is not None:
            copies = {
                name: held if isinstance(held, torch.Tensor) else mask.bits[name].clone()
                for name, held in self._current.items()
            }
            mask = replace(mask, bits=copies)
        self._selected = mask
        self._is_consistent = True

    def _wanted(self, mask: PackedMask, name: str) -> tuple[MaskBits, float]:
        """Return the bits and the scale of a parameter under a mask; no weights under any scale are as under this."""
        bits = mask.of(name)
        scale = self._global_alpha if mask.is_global else self._alpha * mask.factor(name)
        if scale == 0 or (isinstance(bits, int) and bits == 0):
            return 0, self._flips[name].scale
        return bits, scale

    def _flips_of(self, name: str, parameter: torch.Tensor, scale: float) -> _Flips:
        """Return the flips of a parameter, which holds its base weights, under another scale."""
        flat = parameter.detach().reshape(-1)
        original = self._uncast.get(name, flat)
        served = self._codec.apply(original, self._delta[name].reshape(-1), scale, original.dtype)
        return _Flips(scale, _difference(flat, served.to(flat.device, flat.dtype)))

    def _change(self, name: str, parameter: torch.Tensor, wanted: MaskBits) -> None:
        """Bring a parameter under another mask of the same scale."""
        if same_bits(self._current[name], wanted):
            return
        # The bits are a copy: the caller's tensors may be loaded over.
        transition = Transition(self._current[name], wanted if isinstance(wanted, int) else wanted.clone())
        before = self._stamps.pop(name, None)
        self._interrupted[name] = transition
        count = self._flip(name, parameter, transition)
        stamp = stamp_of(parameter)
        self._current[name] = transition.new
        del self._interrupted[name]
        # A write by another thread counts more versions; the next check then compares the bits.
        count = 0 if torch.is_inference_mode_enabled() else count
        if before is not None and stamp == (*before[:-1], before[-1] + count):
            self._stamps[name] = stamp

    def _flip(self, name: str, parameter: torch.Tensor, transition: Transition) -> int:
        """Flip a parameter's bits, and return how often it was written to."""
        old, new = transition.old, transition.new
        flips = self._flips[name].bits
        if isinstance(old, int) and isinstance(new, int) and old == new:
            return 0
        live = parameter.detach()
        flat = (live if live.is_contiguous() else live.contiguous()).view(-1).view(flips.dtype)
        if isinstance(old, int) and isinstance(new, int):
            flat.bitwise_xor_(flips)
            count = 1
        else:
            key = (flips.dtype, flips.device)
            if key not in self._buffers:
                self._buffers[key] = FlipBuffer(*key)
            count = self._buffers[key].flip(flat, flips, transition)
        if not live.is_contiguous():
            live.copy_(flat.view(live.dtype).view(live.shape))
            count = 1
        return count


def _derive(
    weights: torch.Tensor, steps: torch.Tensor, scale: float, codec: FixedPoint, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return base weights in the type that is served, and their flips."""
    served = codec.apply(weights.reshape(-1), steps.reshape(-1), scale, weights.dtype).to(dtype)
    weights = weights.to(dtype)
    return weights, _difference(weights.reshape(-1), served)


def _difference(base: torch.Tensor, served: torch.Tensor) -> torch.Tensor:
    """Return the bits that differ; only bits are compared and flipped, so -0.0 and NaN need no special care."""
    bits = served.view(bits_dtype(served.dtype))
    return bits.bitwise_xor_(base.view(bits.dtype))


def _find(parameters: Mapping[str, torch.nn.Parameter], name: str, shape: Any = None) -> torch.nn.Parameter:
    parameter = parameters.get(name)
    if parameter is None:
        raise WeightsChangedError(f"The model no longer has the parameter {name!r} of the merged delta. {_WAY_OUT}")
    if parameter.is_meta:
        raise WeightsChangedError(
            f"The parameter {name!r} has no data here (meta device, offloaded). Clusters are switched on weights in "
            "memory: load without offloading."
        )
    if shape is not None and shape != parameter.shape:
        raise IncompatibleBaseError(
            f"The parameter {name!r} has shape {tuple(parameter.shape)}, but its merged delta has {tuple(shape)}. "
            "Take the base model that the delta was made for."
        )
    return parameter
