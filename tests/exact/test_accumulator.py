from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clamu.errors import FixedPointOverflowError
from hf_clamu.exact import DeltaAccumulator, TaskVector, digest_tensors, narrowest_dtype

INT64_MAX = 2**63 - 1
# "near" straddles the border of int32, "far" needs int64, "small" is the usual case.
ENTRY = st.one_of(
    st.integers(-9, 9),
    st.integers(2**31 - 3, 2**31 + 1),
    st.integers(-(2**31) - 1, 3 - 2**31),
    st.integers(-(2**57), 2**57),
)
TASK = st.tuples(st.lists(ENTRY, min_size=3, max_size=3), st.lists(ENTRY, min_size=2, max_size=2))
SHAPES = {"b": torch.Size([3]), "a": torch.Size([2, 1])}


def task_vector(task: tuple[list[int], list[int]]) -> TaskVector:
    b, a = task
    return TaskVector.of({"b": torch.tensor(b), "a": torch.tensor(a).reshape(2, 1)})


def build(tasks: list[tuple[list[int], list[int]]]) -> DeltaAccumulator:
    accumulator = DeltaAccumulator(SHAPES)
    for task in tasks:
        accumulator.add(task_vector(task))
    return accumulator


def assert_same(left: DeltaAccumulator, right: DeltaAccumulator) -> None:
    assert left.bounds == right.bounds
    assert list(left.narrowed()) == list(right.narrowed())
    for name, n in left.narrowed().items():
        other = right.narrowed()[name]
        assert n.dtype == other.dtype
        assert torch.equal(n, other)
    assert digest_tensors(left.narrowed()) == digest_tensors(right.narrowed())


@settings(max_examples=80, deadline=None)
@given(tasks=st.lists(TASK, max_size=8), data=st.data())
def test_any_order_gives_the_same_sum(tasks, data):
    expected = build(tasks)
    assert_same(build(data.draw(st.permutations(tasks))), expected)
    # And the sum is the true one, by Python's unbounded integers.
    assert expected.narrowed()["b"].tolist() == [sum(b[i] for b, _ in tasks) for i in range(3)]
    assert expected.bounds["a"] == sum(max(abs(x) for x in a) for _, a in tasks)


@settings(max_examples=60, deadline=None)
@given(tasks=st.lists(TASK, max_size=8), data=st.data())
def test_any_grouping_gives_the_same_sum(tasks, data):
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(tasks), max_size=len(tasks)))
    groups = [[t for t, owner in zip(tasks, owners, strict=True) if owner == k] for k in range(3)]
    partial = [build(group) for group in groups]
    total = {name: sum(p.narrowed()[name].long() for p in partial) for name in SHAPES}
    assert_same(DeltaAccumulator.restore(total, [p.bounds for p in partial]), build(tasks))


@settings(max_examples=80, deadline=None)
@given(tasks=st.lists(st.tuples(TASK, st.booleans()), max_size=8), data=st.data())
def test_any_removal_leaves_no_trace(tasks, data):
    forgotten = [task for task, forget in tasks if forget]
    accumulator = build([task for task, _ in data.draw(st.permutations(tasks))])
    for task in data.draw(st.permutations(forgotten)):
        accumulator.subtract(task_vector(task))
    assert_same(accumulator, build([task for task, forget in tasks if not forget]))


@settings(max_examples=40, deadline=None)
@given(tasks=st.lists(TASK, min_size=1, max_size=5), late=TASK, cut=st.integers(0, 5))
def test_a_restored_sum_goes_on_as_if_never_saved(tasks, late, cut):
    first, rest = tasks[:cut], tasks[cut:]
    saved = build(first)
    restored = DeltaAccumulator.restore(saved.narrowed(), [task_vector(t).bounds for t in first])
    assert_same(restored, saved)
    for task in [*rest, late]:
        restored.add(task_vector(task))
    for task in first:
        restored.subtract(task_vector(task))
    assert_same(restored, build([*rest, late]))


@pytest.mark.parametrize(
    ("narrow", "wide"), [(torch.int8, torch.int16), (torch.int16, torch.int32), (torch.int32, torch.int64)]
)
def test_the_dtype_follows_the_bound_and_not_the_values(narrow, wide):
    most = torch.iinfo(narrow).max
    half = (most + 1) // 2
    accumulator = DeltaAccumulator({"w": torch.Size([1])})
    accumulator.add(TaskVector.of({"w": torch.tensor([half])}))
    accumulator.add(TaskVector.of({"w": torch.tensor([1 - half])}))
    assert accumulator.bounds == {"w": most}
    assert accumulator.narrowed()["w"].dtype == narrow
    last = TaskVector.of({"w": torch.tensor([-1])})
    accumulator.add(last)
    # The value is 0, but the bound has passed the type.
    assert accumulator.bounds == {"w": most + 1}
    assert accumulator.narrowed()["w"].tolist() == [0]
    assert accumulator.narrowed()["w"].dtype == wide
    accumulator.subtract(last)
    assert accumulator.narrowed()["w"].tolist() == [1]
    assert accumulator.narrowed()["w"].dtype == narrow


def test_sums_of_formats_1_and_2_have_32_bits():
    vector = TaskVector.of({"w": torch.tensor([3])}, 32)
    assert vector.steps["w"].dtype == torch.int32
    accumulator = DeltaAccumulator({"w": torch.Size([1])}, least_bits=32)
    assert accumulator.narrowed()["w"].dtype == torch.int32
    accumulator.add(vector)
    restored = DeltaAccumulator.restore(accumulator.narrowed(), [vector.bounds], least_bits=32)
    restored.subtract(vector)
    assert restored.narrowed()["w"].dtype == torch.int32


@pytest.mark.parametrize(
    ("bound", "dtype"),
    [
        (0, torch.int8),
        (127, torch.int8),
        (128, torch.int16),
        (2**15 - 1, torch.int16),
        (2**15, torch.int32),
        (2**31 - 1, torch.int32),
        (2**31, torch.int64),
        (INT64_MAX, torch.int64),
    ],
)
@pytest.mark.parametrize("least_bits", [8, 16, 32, 64])
def test_narrowest_dtype(bound, dtype, least_bits):
    found = narrowest_dtype(bound, least_bits)
    assert 8 * found.itemsize == max(least_bits, 8 * dtype.itemsize)
    assert torch.tensor([bound, -bound]).to(found).tolist() == [bound, -bound]


def test_a_task_vector_is_bounded_narrowed_and_digested():
    vector = TaskVector.of(
        {"min32": torch.tensor([-(2**31)]), "max32": torch.tensor([2**31 - 1, 0]), "none": torch.zeros(0).long()}
    )
    assert vector.bounds == {"min32": 2**31, "max32": 2**31 - 1, "none": 0}
    assert {k: v.dtype for k, v in vector.steps.items()} == {
        "min32": torch.int64,
        "max32": torch.int32,
        "none": torch.int8,
    }
    assert vector.digest == digest_tensors(vector.steps)


def test_the_bound_of_the_smallest_int64_does_not_wrap():
    vector = TaskVector.of({"w": torch.tensor([-(2**63)])})
    assert vector.bounds == {"w": 2**63}
    with pytest.raises(FixedPointOverflowError):
        DeltaAccumulator({"w": torch.Size([1])}).add(vector)


def test_an_overflow_raises_before_anything_is_added():
    shapes = {"a": torch.Size([1]), "z": torch.Size([1])}
    accumulator = DeltaAccumulator(shapes)
    first = TaskVector.of({"a": torch.tensor([5]), "z": torch.tensor([INT64_MAX - 1])})
    accumulator.add(first)
    before, bounds = accumulator.narrowed(), accumulator.bounds
    # The values would cancel, the bounds do not: the proof fails, so the sum is refused.
    with pytest.raises(FixedPointOverflowError, match="'z'"):
        accumulator.add(TaskVector.of({"a": torch.tensor([7]), "z": torch.tensor([-2])}))
    assert accumulator.bounds == bounds
    assert {k: v.tolist() for k, v in accumulator.narrowed().items()} == {k: v.tolist() for k, v in before.items()}
    accumulator.add(TaskVector.of({"a": torch.tensor([7]), "z": torch.tensor([1])}))
    assert accumulator.bounds == {"a": 12, "z": INT64_MAX}
    assert accumulator.narrowed()["z"].item() == INT64_MAX


@pytest.mark.parametrize(
    "steps",
    [
        {"a": torch.ones(2).long()},
        {"a": torch.ones(2).long(), "z": torch.ones(3).long(), "other": torch.ones(1).long()},
        {"a": torch.ones(2).long(), "z": torch.ones(1).long()},
        {"a": torch.ones(2).long(), "z": torch.ones(2).long()},
        {"a": torch.ones(2).long(), "z": torch.ones(1, 3).long()},
    ],
)
@pytest.mark.parametrize("operation", ["add", "subtract"])
def test_a_misfitting_task_vector_raises_before_anything_is_added(steps, operation):
    accumulator = DeltaAccumulator({"a": torch.Size([2]), "z": torch.Size([3])})
    with pytest.raises(ValueError, match=r"differ in parameters|has shape"):
        getattr(accumulator, operation)(TaskVector.of(steps))
    assert accumulator.bounds == {"a": 0, "z": 0}
    assert all(not n.any() for n in accumulator.narrowed().values())


def test_narrowed_and_bounds_are_copies():
    accumulator = DeltaAccumulator({"w": torch.Size([1])})
    accumulator.add(TaskVector.of({"w": torch.tensor([2**40])}))
    accumulator.narrowed()["w"].zero_()
    accumulator.bounds["w"] = 0
    assert accumulator.narrowed()["w"].item() == 2**40
    assert accumulator.bounds == {"w": 2**40}


@settings(max_examples=60, deadline=None)
@given(tasks=st.lists(TASK, max_size=6), data=st.data())
def test_a_sum_in_a_file_is_the_same_and_widens_as_well(tmp_path_factory, tasks, data):
    folder = tmp_path_factory.mktemp("sums")
    mapped = DeltaAccumulator(SHAPES, folder)
    assert not list(folder.iterdir()), "the file has no name"
    for task in data.draw(st.permutations(tasks)):
        mapped.add(task_vector(task))
    expected = build(tasks)
    assert_same(mapped, expected)
    assert {name: n.dtype for name, n in mapped.steps.items()} == {
        name: narrowest_dtype(bound) for name, bound in expected.bounds.items()
    }
    restored = DeltaAccumulator.restore(mapped.narrowed(), [task_vector(task).bounds for task in tasks], folder)
    for task in tasks[:3]:
        restored.subtract(task_vector(task))
    assert_same(restored, build(tasks[3:]))


@settings(max_examples=60, deadline=None)
@given(mine=st.lists(TASK, max_size=4), theirs=st.lists(TASK, max_size=4))
def test_sums_of_two_processes_are_reduced_in_one_type(mine, theirs):
    ours, others = build(mine), build(theirs)
    bounds = [task_vector(task).bounds for task in [*mine, *theirs]]
    seen: list[dict[str, torch.Tensor]] = []
    # What an all-reduce does, which needs the same type everywhere: each process brings its tensors to it.
    others.reduce(lambda tensors: seen.append({name: n.clone() for name, n in tensors.items()}), bounds)

    def add_up(tensors):
        for name, n in tensors.items():
            assert n.dtype == seen[0][name].dtype
            n.add_(seen[0][name])

    ours.reduce(add_up, bounds)
    assert_same(ours, build([*mine, *theirs]))


def test_narrowed_without_a_copy_is_the_sum_where_it_is_narrow():
    accumulator = DeltaAccumulator({"a": torch.Size([1]), "z": torch.Size([1])})
    large = TaskVector.of({"a": torch.tensor([1]), "z": torch.tensor([2**40])})
    accumulator.add(large)
    accumulator.add(TaskVector.of({"a": torch.tensor([1]), "z": torch.tensor([3])}))
    accumulator.subtract(large)
    found = accumulator.narrowed(copy=False)
    assert found["a"].data_ptr() == accumulator.steps["a"].data_ptr()
    assert (found["z"].dtype, found["z"].item()) == (torch.int8, 3)
    assert accumulator.steps["z"].dtype == torch.int64


def test_large_parameters_are_added_in_threads_and_leave_the_threads_as_they_were():
    before = torch.get_num_threads()
    shapes = {"a": (700, 1000), "b": (5,), "c": (600_001,), "d": (0,)}
    generator = torch.Generator().manual_seed(0)
    vectors = [
        TaskVector.of({name: torch.randint(-high, high, shape, generator=generator) for name, shape in shapes.items()})
        for high in (100, 30_000, 2**30, 50)
    ]
    total = DeltaAccumulator({name: torch.Size(shape) for name, shape in shapes.items()})
    for vector in vectors:
        total.add(vector)
    for name in shapes:
        assert torch.equal(total.narrowed()[name].long(), sum(vector.steps[name].long() for vector in vectors))
    for vector in vectors[1:]:
        total.subtract(vector)
    assert total.bounds == vectors[0].bounds
    assert digest_tensors(total.narrowed()) == vectors[0].digest
    assert torch.get_num_threads() == before
