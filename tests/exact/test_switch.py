from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_threads import together

from hf_clamu.errors import CheckpointFormatError, IncompatibleBaseError, WeightsChangedError
from hf_clamu.exact import (
    ALL_WEIGHTS,
    GLOBAL_MODEL,
    NO_WEIGHTS,
    FixedPoint,
    PackedMask,
    WeightSwitch,
    digest_tensors,
    pack_mask,
)

CODEC = FixedPoint(fraction_bits=28)
ALPHA, GLOBAL_ALPHA = 0.3, 0.07
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Weights per pass here, so that small tensors take several.
CHUNK = 1 << 12
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(scope="module", autouse=True)
def _short_passes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_clamu.exact.bit_flips.ENTRIES_ON_CPU", CHUNK)
        yield


class Model(torch.nn.Module):
    """Three trained parameters, one of them tied, longer than a chunk or of odd size, and a frozen one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def parameter(*shape: int, grad: bool = True) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype), requires_grad=grad)

        self.long = parameter(3 * CHUNK + 13)
        self.odd = parameter(3, 5, 7)
        self.embedding = parameter(9, 9)
        self.head = torch.nn.Module()
        self.head.weight = self.embedding
        self.frozen = parameter(11, grad=False)


def parameters_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().contiguous()
    return tensor.view(INTEGERS[tensor.element_size()]).clone()


def all_bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: bits(p) for name, p in model.named_parameters() if not p.is_meta}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def delta_for(model: torch.nn.Module, seed: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(-(2**29), 2**29, p.shape, generator=generator)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def masks_for(delta: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(n.shape, generator=generator) < 0.4 for name, n in delta.items()}


def packed(masks: dict[str, torch.Tensor]) -> PackedMask:
    return PackedMask(bits={name: pack_mask(mask) for name, mask in masks.items()})


def factors_for(delta: dict[str, torch.Tensor], seed: int) -> dict[str, float]:
    """Factors of the parameters, 0 and 1 among them; float32 values, as masks have them."""
    values = [0.5, 0.0, 8.0, 1.0, float(torch.tensor(0.3)), 2.25]
    return {name: values[(place + seed) % len(values)] for place, name in enumerate(sorted(delta))}


def reference(
    base: dict[str, torch.Tensor],
    delta: dict[str, torch.Tensor],
    masks: dict[str, torch.Tensor],
    alpha: float = ALPHA,
    factors: dict[str, float] | None = None,
):
    """The masked weights from the formula, without the switch."""
    result = {}
    for name, w0 in base.items():
        if name in delta:
            scale = alpha * (1.0 if factors is None else factors[name])
            w1 = (w0.double() + delta[name].double() * (scale * CODEC.step)).to(w0.dtype)
            result[name] = bits(torch.where(masks[name], w1, w0))
        else:
            result[name] = bits(w0)
    return result


def switched(dtype: torch.dtype = torch.float32) -> tuple[Model, WeightSwitch, dict[str, torch.Tensor]]:
    model = Model(dtype)
    delta = delta_for(model)
    return model, WeightSwitch(parameters_of(model), delta, ALPHA, CODEC, global_alpha=GLOBAL_ALPHA), delta


def base_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_mask_selects_between_base_and_merged_weights_bit_for_bit(dtype, seed):
    model = Model(dtype)
    base, delta = base_of(model), delta_for(model, seed)
    switch = WeightSwitch(parameters_of(model), delta, ALPHA, CODEC)
    assert_equal(all_bits(model), {name: bits(w0) for name, w0 in base.items()})
    masks = masks_for(delta, seed)
    mask = packed(masks)
    switch.select(parameters_of(model), mask)
    assert_equal(dict(switch.selected.bits), dict(mask.bits))
    assert_equal(all_bits(model), reference(base, delta, masks))
    # The mask had something to do, and left something alone.
    moved = bits(base["long"]) != bits(model.long)
    assert 0 < int(moved.sum()) < moved.numel()


# Of masks: the global model, no weights, all weights, masks, and masks with factors.
NUMBERS = (-1, 0, 1, 2, 3, 4, 5, 10, 11, 12)
PATHS = [(2, 3), (0, 1), (1, 2), (3, 0), (2, -1), (-1, 3), (1, -1), (-1, 0), (2, 10), (10, 11), (11, -1)]


def mask_number(delta: dict[str, torch.Tensor], number: int) -> tuple[PackedMask, dict[str, torch.Tensor]]:
    if number < 0:
        return GLOBAL_MODEL, {name: torch.ones(n.shape, dtype=torch.bool) for name, n in delta.items()}
    if number < 2:
        return (ALL_WEIGHTS if number else NO_WEIGHTS), {k: torch.full(n.shape, number == 1) for k, n in delta.items()}
    masks = masks_for(delta, number)
    return replace(packed(masks), factors=factors_for(delta, number) if number >= 10 else None), masks


def state_of(base: dict[str, torch.Tensor], delta: dict[str, torch.Tensor], number: int):
    mask, masks = mask_number(delta, number)
    return reference(base, delta, masks, ALPHA if number >= 0 else GLOBAL_ALPHA, mask.factors)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    path=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 10, 11, 12]), min_size=1, max_size=6),
)
def test_the_way_to_a_mask_or_the_global_model_does_not_show(dtype, path):
    model = Model(dtype)
    base, delta = base_of(model), delta_for(model)
    switch = WeightSwitch(parameters_of(model), delta, ALPHA, CODEC, global_alpha=GLOBAL_ALPHA)
    for number in path:
        switch.select(parameters_of(model), mask_number(delta, number)[0])
    assert_equal(all_bits(model), state_of(base, delta, path[-1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_global_model_in_another_type_is_rounded_once(dtype):
    model = Model()
    delta = delta_for(model)
    ones = {name: torch.ones(n.shape, dtype=torch.bool) for name, n in delta.items()}
    exact = {}
    for name, w0 in base_of(model).items():
        moved = w0.double() + delta[name].double() * (GLOBAL_ALPHA * CODEC.step) if name in delta else w0
        exact[name] = bits(moved.float().to(dtype) if name in delta else w0)
    switch = WeightSwitch(parameters_of(model), delta, ALPHA, CODEC, global_alpha=GLOBAL_ALPHA, dtype=dtype)
    for mask in (packed(masks_for(delta, 1)), GLOBAL_MODEL, packed(ones), GLOBAL_MODEL):
        switch.select(parameters_of(model), mask)
    assert_equal(all_bits(model), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_in_another_type_are_rounded_once(dtype):
    model = Model()
    base, delta = base_of(model), delta_for(model)
    switch = WeightSwitch(parameters_of(model), delta, ALPHA, CODEC, dtype=dtype, has_factors=True)
    for number in (10, 1, 11, 12):
        mask, masks = mask_number(delta, number)
        switch.select(parameters_of(model), mask)
        exact = {name: w0.to(dtype) if name in delta else w0 for name, w0 in base.items()}
        for name, steps in delta.items():
            scale = ALPHA * (1.0 if mask.factors is None else mask.factors[name])
            moved = (base[name].double() + steps.double() * (scale * CODEC.step)).float().to(dtype)
            exact[name] = torch.where(masks[name], moved, exact[name])
        assert_equal(all_bits(model), {name: bits(value) for name, value in exact.items()})


def test_a_parameter_without_a_share_is_selected_again_and_again():
    model, switch, delta = switched()
    parameters = parameters_of(model)
    mask = mask_number(delta, 11)[0]
    assert 0.0 in mask.factors.values()
    switch.select(parameters, mask)
    after = all_bits(model)
    switch.select(parameters, NO_WEIGHTS)
    switch.select(parameters, replace(mask, cluster=3))
    kept = switch.selected
    assert_equal(dict(kept.bits), dict(mask.bits))
    assert (kept.factors, kept.cluster) == (mask.factors, 3)
    switch.select(parameters, GLOBAL_MODEL)
    switch.select(parameters, kept)
    assert_equal(all_bits(model), after)


@pytest.mark.parametrize(("global_alpha", "same"), [(ALPHA, ALL_WEIGHTS), (None, ALL_WEIGHTS), (0.0, NO_WEIGHTS)])
def test_a_global_model_without_a_coefficient_of_its_own(global_alpha, same):
    model = Model()
    with torch.no_grad():
        model.odd.mul_(0.0)  # zeros of both signs
    delta = delta_for(model)
    switch = WeightSwitch(parameters_of(model), delta, ALPHA, CODEC, global_alpha=global_alpha)
    switch.select(parameters_of(model), same)
    expected, versions = all_bits(model), {name: p._version for name, p in model.named_parameters()}
    switch.select(parameters_of(model), GLOBAL_MODEL)
    assert switch.selected is GLOBAL_MODEL
    assert {name: p._version for name, p in model.named_parameters()} == versions
    switch.select(parameters_of(model), packed(masks_for(delta, 1)))
    switch.select(parameters_of(model), GLOBAL_MODEL)
    assert_equal(all_bits(model), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weights_gives_every_bit_pattern_back(dtype):
    size = torch.empty((), dtype=dtype).element_size()
    if size == 2:
        raw = torch.arange(-(2**15), 2**15).to(torch.int16)  # every pattern there is
    else:
        raw = torch.randint(-(2**31), 2**31, (4001,), generator=torch.Generator().manual_seed(3)).to(torch.int32)
        signalling_nan = {4: 0x7F800001, 8: 0x7FF0000000000001}[size]
        quiet_nan = {4: 0x7FC0BEEF, 8: 0x7FF80000DEADBEEF}[size]
        sign = -(2 ** (8 * size - 1))
        special = [0, sign, 1, sign + 1, signalling_nan, quiet_nan, sign + signalling_nan, sign + quiet_nan]
        raw = torch.cat([raw.to(INTEGERS[size]), torch.tensor(special, dtype=INTEGERS[size])])
    weight = torch.nn.Parameter(raw.view(dtype))
    expected = raw.clone()
    parameters = {"w": weight}
    delta = {"w": torch.randint(-(2**30), 2**30, raw.shape, generator=torch.Generator().manual_seed(4))}
    switch = WeightSwitch(parameters, delta, ALPHA, CODEC)
    switch.select(parameters, ALL_WEIGHTS)
    assert not torch.equal(bits(weight), expected)
    switch.select(parameters, packed(masks_for(delta, 1)))
    switch.select(parameters, NO_WEIGHTS)
    assert torch.equal(bits(weight), expected)


def test_tied_weights_are_flipped_once_and_frozen_ones_never():
    model, switch, delta = switched()
    assert "head.weight" not in delta
    assert "frozen" not in delta
    base = base_of(model)
    switch.select(parameters_of(model), ALL_WEIGHTS)
    assert model.head.weight is model.embedding
    expected = reference(base, delta, {name: torch.ones(n.shape, dtype=torch.bool) for name, n in delta.items()})
    assert_equal(all_bits(model), expected)
    assert torch.equal(expected["frozen"], bits(base["frozen"]))
    assert not torch.equal(bits(model.head.weight), bits(base["embedding"]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "relay",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, -t], dim=-1)[..., 0],
        lambda t: torch.cat([t, t])[t.shape[0] :],
    ],
    ids=["transposed", "interleaved", "offset"],
)
def test_strides_do_not_matter(dtype, relay: Callable[[torch.Tensor], torch.Tensor]):
    w0 = torch.randn(301, 257, generator=torch.Generator().manual_seed(8)).to(dtype)
    weight = torch.nn.Parameter(relay(w0))
    stride = weight.stride()
    parameters, delta = {"w": weight}, delta_for(torch.nn.ParameterDict({"w": w0}))
    switch = WeightSwitch(parameters, delta, ALPHA, CODEC)
    for seed in range(3):
        masks = masks_for(delta, seed)
        switch.select(parameters, packed(masks))
        assert torch.equal(bits(weight), reference({"w": w0}, delta, masks)["w"])
    switch.select(parameters, NO_WEIGHTS)
    assert torch.equal(bits(weight), bits(w0))
    assert weight.stride() == stride


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 31, 33, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_sizes_around_bytes_and_chunks(size):
    w0 = torch.randn(size, generator=torch.Generator().manual_seed(size))
    parameters = {"w": torch.nn.Parameter(w0.clone())}
    delta = {"w": torch.full((size,), 2**28)}
    switch = WeightSwitch(parameters, delta, ALPHA, CODEC)
    for masks in (masks_for(delta, 1), masks_for(delta, 2)):
        switch.select(parameters, packed(masks))
        assert torch.equal(bits(parameters["w"]), reference({"w": w0}, delta, masks)["w"])


def test_a_deepcopy_switches_alone():
    model, switch, delta = switched()
    model.switch = switch
    base = base_of(model)
    first, second = masks_for(delta, 1), masks_for(delta, 2)
    switch.select(parameters_of(model), packed(first))
    twin = copy.deepcopy(model)
    assert twin.switch is not switch
    assert_equal(all_bits(twin), all_bits(model))
    twin.switch.select(parameters_of(twin), packed(second))
    assert_equal(all_bits(twin), reference(base, delta, second))
    assert_equal(all_bits(model), reference(base, delta, first))
    switch.select(parameters_of(model), NO_WEIGHTS)
    assert_equal(all_bits(model), {name: bits(w0) for name, w0 in base.items()})
    assert_equal(all_bits(twin), reference(base, delta, second))


def test_a_changed_deepcopy_is_refused():
    model, switch, delta = switched()
    model.switch = switch
    switch.select(parameters_of(model), packed(masks_for(delta, 1)))
    twin = copy.deepcopy(model)
    twin.odd.data.add_(1.0)  # Seen all the same: the copy recognises its weights by digest the first time.
    with pytest.raises(WeightsChangedError, match="'odd'"):
        twin.switch.select(parameters_of(twin), NO_WEIGHTS)


def clone_storage(model: Model) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def new_parameters(model: Model) -> None:
    model.long = torch.nn.Parameter(model.long.detach().clone())
    model.frozen = torch.nn.Parameter(model.frozen.detach().clone())


def other_strides(model: Model) -> None:
    model.embedding.data = model.embedding.data.t().contiguous().t()


def rewrite_the_same(model: Model) -> None:
    with torch.no_grad():
        model.odd.copy_(model.odd.clone())


def wider_and_back(model: Model) -> None:
    model.double().float()


@pytest.mark.parametrize("move", [clone_storage, new_parameters, other_strides, rewrite_the_same, wider_and_back])
def test_weights_that_moved_with_equal_content_are_accepted(move: Callable[[Model], None]):
    model, switch, delta = switched()
    base = base_of(model)
    switch.select(parameters_of(model), packed(masks_for(delta, 1)))
    move(model)
    second = masks_for(delta, 2)
    switch.select(parameters_of(model), packed(second))
    assert_equal(all_bits(model), reference(base, delta, second))


def optimizer_step(model: Model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.odd.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def fused_optimizer_step(model: Model) -> None:
    # The Trainer's default; it does not count a version by itself.
    optimizer = torch.optim.AdamW([model.odd], lr=0.1, fused=True)
    model.odd.grad = torch.ones_like(model.odd)
    optimizer.step()


def edit_in_place(model: Model) -> None:
    with torch.no_grad():
        model.odd[-1, -1, -1] += 1.0


def replace_data(model: Model) -> None:
    model.odd.data = model.odd.data + 1.0


def replace_data_by_its_transpose(model: Model) -> None:
    model.embedding.data = model.embedding.data.t()


def replace_data_by_a_slice(model: Model) -> None:
    model.odd.data = model.odd.data[:1]


def replace_data_by_another_shape(model: Model) -> None:
    model.odd.data = model.odd.data.view(5, 3, 7)


def cast(model: Model) -> None:
    model.half()


def cast_and_back(model: Model) -> None:
    model.bfloat16().float()


def cast_to_bytes(model: Model) -> None:
    model.odd = torch.nn.Parameter(model.odd.detach().to(torch.int8), requires_grad=False)


def same_bits_as_integers(model: Model) -> None:
    model.odd = torch.nn.Parameter(model.odd.detach().view(torch.int32).clone(), requires_grad=False)


def resize(model: Model) -> None:
    model.odd = torch.nn.Parameter(torch.cat([model.odd.detach(), torch.zeros(1, 5, 7)]))


def remove(model: Model) -> None:
    del model.odd


def to_meta(model: Model) -> None:
    model.odd = torch.nn.Parameter(model.odd.detach().to("meta"))


CHANGES = [
    optimizer_step,
    fused_optimizer_step,
    edit_in_place,
    replace_data,
    replace_data_by_its_transpose,
    replace_data_by_a_slice,
    replace_data_by_another_shape,
    cast,
    cast_and_back,
    cast_to_bytes,
    same_bits_as_integers,
    resize,
    remove,
    to_meta,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", [-1, 0, 1, 2])
def test_changes_underneath_are_refused_and_no_weight_is_touched(change: Callable[[Model], None], number):
    model, switch, delta = switched()
    switch.select(parameters_of(model), mask_number(delta, number)[0])
    selected = switch.selected
    change(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for target in (2, 3, 0, 1, -1):
        with pytest.raises(WeightsChangedError, match=r"'(odd|embedding|long)'"):
            switch.select(parameters_of(model), mask_number(delta, target)[0])
    assert switch.selected is selected
    after = parameters_of(model)
    assert after.keys() == before.keys()
    for name, old in before.items():
        assert after[name].dtype == old.dtype
        assert after[name].shape == old.shape
        if not old.is_meta:
            assert digest_tensors({"": after[name]}) == digest_tensors({"": old})
    with pytest.raises(WeightsChangedError):
        switch.check(parameters_of(model))


def test_a_step_of_another_model_counts_no_version():
    model, switch, _ = switched()
    other = torch.nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    before = {name: parameter._version for name, parameter in parameters_of(model).items()}
    torch.optim.AdamW([other], fused=True).step()
    switch.select(parameters_of(model), switch.selected)
    assert other._version == 0
    assert {name: parameter._version for name, parameter in parameters_of(model).items()} == before


@pytest.mark.parametrize("number", [-1, 0, 1, 2])
def test_selecting_the_selected_mask_writes_nothing(number):
    model, switch, delta = switched()
    mask, _ = mask_number(delta, number)
    switch.select(parameters_of(model), mask)
    versions, held = {name: p._version for name, p in model.named_parameters()}, all_bits(model)
    switch.select(parameters_of(model), copy.deepcopy(mask))
    assert {name: p._version for name, p in model.named_parameters()} == versions
    assert_equal(all_bits(model), held)


def test_new_storage_at_the_old_address_does_not_pass_for_the_old_one():
    # `.data =` keeps the version, and allocators give freed addresses out again (a cast there and back does both), so
    # address and version alone would accept other weights.
    memory = np.ones(8, dtype=np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(memory))
    parameters = {"w": weight}
    switch = WeightSwitch(parameters, {"w": torch.full((8,), 2**28)}, 1.0, CODEC)
    place = weight.data_ptr(), weight._version
    memory[3] = 5.0
    weight.data = torch.from_numpy(memory)
    assert (weight.data_ptr(), weight._version) == place
    with pytest.raises(WeightsChangedError, match="'w'"):
        switch.select(parameters, ALL_WEIGHTS)
    assert weight.tolist() == [1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0]


def test_a_changed_sign_of_zero_is_refused():
    parameters = {"w": torch.nn.Parameter(torch.zeros(4))}
    switch = WeightSwitch(parameters, {"w": torch.full((4,), 2**28)}, 1.0, CODEC)
    with torch.no_grad():
        parameters["w"][2] = -0.0
    with pytest.raises(WeightsChangedError, match="'w'"):
        switch.select(parameters, ALL_WEIGHTS)


class Interruption:
    """Raises KeyboardInterrupt before the line of the switch with a number; once, or again when it goes back."""

    def __init__(self, place: int, *, again: bool) -> None:
        self.place, self.again, self.count = place, again, 0

    def during(self, act: Callable[[dict], object], parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Run something, and return whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            act(_Watched(self, parameters))
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    def _trace(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith("exact/switch.py"):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.place:
                raise KeyboardInterrupt  # and Python traces no longer
        return self._trace


class _Watched(dict):
    def __init__(self, interruption: Interruption, parameters: dict[str, torch.nn.Parameter]) -> None:
        super().__init__(parameters)
        self._interruption = interruption

    def get(self, name, default=None):
        if self._interruption.again and self._interruption.count >= self._interruption.place:
            raise KeyboardInterrupt
        return super().get(name, default)


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize(
    ("start", "target"),
    [(2, 3), (0, 1), (1, 2), (3, 0), (2, -1), (-1, 3), (1, -1), (-1, 0), (2, 10), (10, 11), (11, -1)],
)
def test_a_switch_may_be_interrupted_at_any_line(start, target, again):
    model, switch, delta = switched()
    base, parameters = base_of(model), parameters_of(model)
    states = {number: state_of(base, delta, number) for number in (0, start, target, 4)}
    wanted = mask_number(delta, target)[0]
    place, unsettled = 1, 0
    while True:
        switch.select(parameters, mask_number(delta, start)[0])
        assert_equal(all_bits(model), states[start])
        if not Interruption(place, again=again).during(lambda live: switch.select(live, wanted), parameters):
            break
        if switch.is_consistent:
            # It went back, or had arrived.
            arrived = switch.selected.fill == wanted.fill and switch.selected.is_global == wanted.is_global
            arrived = arrived and (switch.selected.bits is None) == (wanted.bits is None)
            if wanted.bits is not None and switch.selected.bits is not None:
                arrived = torch.equal(switch.selected.bits["long"], wanted.bits["long"])
            assert_equal(all_bits(model), states[target if arrived else start])
        else:
            unsettled += 1
            switch.select(parameters, mask_number(delta, 4)[0])
            assert_equal(all_bits(model), states[4])
        switch.select(parameters, NO_WEIGHTS)
        assert switch.is_consistent
        assert_equal(all_bits(model), states[0])
        place += 1
    assert place > 60  # Lines of the switch itself, and not only of its entrance.
    assert unsettled > 20 or not again


def test_a_weight_that_was_changed_after_an_interruption_is_refused():
    model, switch, delta = switched()
    parameters = parameters_of(model)
    switch.select(parameters, packed(masks_for(delta, 1)))
    other, place = packed(masks_for(delta, 2)), 0
    while switch.is_consistent:
        place += 5
        Interruption(place, again=True).during(lambda live: switch.select(live, other), parameters)
    edit_in_place(model)
    changed = all_bits(model)
    for mask in (NO_WEIGHTS, ALL_WEIGHTS):
        with pytest.raises(WeightsChangedError, match="'odd'"):
            switch.select(parameters, mask)
    assert_equal(all_bits(model), changed)
    assert not switch.is_consistent


@pytest.mark.usefixtures("many_switches_of_threads")
def test_threads_switch_one_after_the_other():
    model, switch, delta = switched()
    base, parameters = base_of(model), parameters_of(model)
    masks = {number: mask_number(delta, (0, -1, 2, 3)[number]) for number in range(4)}
    expected = {number: state_of(base, delta, (0, -1, 2, 3)[number]) for number in masks}

    def work(number: int) -> None:
        for _ in range(15):
            with switch.guard.lock:
                switch.select(parameters, masks[number][0])
                assert_equal(all_bits(model), expected[number])
            switch.select(parameters, masks[(number + 1) % 4][0])

    assert together(*(functools.partial(work, number % 4) for number in range(8))) == []
    switch.select(parameters, NO_WEIGHTS)
    assert_equal(all_bits(model), expected[0])


def test_what_is_written_while_a_switch_runs_is_found_by_the_next():
    # A thread that holds no guard; here it writes between two lines of the switch.
    model, switch, delta = switched()
    parameters = parameters_of(model)
    found = 0
    for place in range(1, 60):
        model, switch, delta = switched()
        parameters = parameters_of(model)
        count = 0

        def trace(frame, event, arg, model=model, place=place):
            nonlocal count
            if not frame.f_code.co_filename.endswith("exact/switch.py"):
                return None
            if event == "line":
                count += 1
                if count == place:
                    with torch.no_grad():
                        model.odd.add_(1.0)
            return trace

        sys.settrace(trace)
        try:
            switch.select(parameters, packed(masks_for(delta, 1)))
        except WeightsChangedError:
            found += 1
            continue
        finally:
            sys.settrace(None)
        with pytest.raises(WeightsChangedError, match="'odd'"):
            switch.select(parameters, NO_WEIGHTS)
    assert found > 0


def test_known_limit_in_place_edits_through_data_escape_the_check():
    """`p.data.add_()` writes through a tensor with a version counter of its own, in the storage that is known.

    Nothing but a digest of all weights at every switch would see it, which would cost more than the switch. The limit
    is kept here so that it is known: the edit passes the check and stays in the weights. A test that fails here means
    that it became visible, and that the docs can promise more.
    """
    parameters = {"w": torch.nn.Parameter(torch.ones(4))}
    switch = WeightSwitch(parameters, {"w": torch.full((4,), 2**28)}, 1.0, CODEC)
    parameters["w"].data.mul_(3.0)
    switch.select(parameters, ALL_WEIGHTS)
    switch.select(parameters, NO_WEIGHTS)
    assert parameters["w"].tolist() == [3.0] * 4


def bad_masks(delta: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    good = {name: pack_mask(mask) for name, mask in masks_for(delta, 3).items()}
    last = max(good)  # The last in order: a check per parameter would have flipped the others by then.
    spare = good[last].clone()
    spare[-1] |= 128
    return {
        "missing": {name: value for name, value in good.items() if name != last},
        "short": {**good, last: good[last][:-1]},
        "long": {**good, last: torch.cat([good[last], good[last][:1]])},
        "padding": {**good, last: spare},
        "signed": {**good, last: good[last].to(torch.int8)},
        "shape": {**good, last: good[last].unsqueeze(0)},
    }


@pytest.mark.parametrize("kind", ["missing", "short", "long", "padding", "signed", "shape"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_bad_mask_is_refused_and_no_weight_is_touched(kind, number):
    model, switch, delta = switched()
    start = mask_number(delta, number)[0]
    switch.select(parameters_of(model), start)
    before, selected = all_bits(model), switch.selected
    with pytest.raises(CheckpointFormatError, match="'odd'"):
        switch.select(parameters_of(model), PackedMask(bits=bad_masks(delta)[kind]))
    assert_equal(all_bits(model), before)
    assert switch.selected is selected
    switch.select(parameters_of(model), NO_WEIGHTS)
    assert_equal(all_bits(model), all_bits(Model()))


@pytest.mark.parametrize("fill", [1, 254, -1, 256])
def test_a_fill_that_is_neither_all_nor_none_is_refused(fill):
    with pytest.raises(ValueError, match="fill must be 0"):
        PackedMask(fill=fill)


@pytest.mark.parametrize("shape", [(2, 4), (8,), (1, 1), (1, 9)])
def test_a_delta_of_another_shape_is_refused(shape):
    parameters = {"w": torch.nn.Parameter(torch.ones(1, 8))}
    with pytest.raises(IncompatibleBaseError, match="'w'"):
        WeightSwitch(parameters, {"w": torch.ones(shape, dtype=torch.int64)}, 1.0, CODEC)
    assert parameters["w"].tolist() == [[1.0] * 8]


def test_a_delta_of_an_absent_or_offloaded_parameter_is_refused():
    delta = {"w": torch.ones(2, dtype=torch.int64)}
    with pytest.raises(WeightsChangedError, match="no longer has the parameter 'w'"):
        WeightSwitch({}, delta, 1.0, CODEC)
    with pytest.raises(WeightsChangedError, match="no data here"):
        WeightSwitch({"w": torch.nn.Parameter(torch.empty(2, device="meta"))}, delta, 1.0, CODEC)


def test_a_switch_between_forward_and_backward_is_seen_by_autograd():
    model, switch, _ = switched()
    loss = model.odd.square().sum()
    switch.select(parameters_of(model), ALL_WEIGHTS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
