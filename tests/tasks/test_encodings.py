"""Encoded tasks are kept up to a size, by their rows."""

from __future__ import annotations

import torch

from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.tasks import Encodings, encodings, keyed_id


def test_encoded_tasks_are_kept_up_to_a_size(monkeypatch, tiny):
    tasks = tiny.tasks("image")
    one, two, three = tasks.task_ids[:3]
    kept = Encodings(None)
    first = kept.of(tasks, one)
    assert kept.of(tasks, one) is first
    assert first.nbytes == sum(
        value.numel() * value.element_size()
        for example in first.train + first.validation
        for value in example.values()
    )
    second = kept.of(tasks, two)
    # Room for two tasks, not for three.
    larger = max(second.nbytes, tasks.encode(three, None).nbytes)
    monkeypatch.setattr(encodings, "ENCODED_BYTES", first.nbytes + larger)
    assert kept.of(tasks, one) is first
    kept.of(tasks, three)
    assert kept.of(tasks, one) is first, "the least recently used one goes"
    again = kept.of(tasks, two)
    assert again is not second
    assert again.digest == second.digest
    for left, right in zip(again.train, second.train, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in right)


def test_selections_share_them_and_other_rows_do_not(tiny):
    tasks, kept = tiny.tasks("text"), Encodings(byte_tokenizer())
    name, other = tasks.task_ids[:2]
    found = kept.of(tasks, name)
    assert kept.of(tasks.select([name]), name) is found
    assert kept.of(tasks.select([name]).merged_with(tasks.without(name)), name) is found
    assert kept.of(tasks, other) is not found
    # Which examples validate depends on the id.
    assert kept.of(tasks.with_key("a key"), keyed_id("a key", name)).digest != found.digest


def test_masks_and_labels_are_kept_once(tiny):
    tasks, kept = tiny.tasks("text"), Encodings(byte_tokenizer())
    examples = []
    for name in tasks.task_ids:
        found, alone = kept.of(tasks, name), tasks.encode(name, byte_tokenizer())
        assert (found.digest, len(found.train), len(found.validation)) == (
            alone.digest,
            len(alone.train),
            len(alone.validation),
        )
        pairs = list(zip(found.train + found.validation, alone.train + alone.validation, strict=True))
        for ours, theirs in pairs:
            assert list(ours) == list(theirs)
            assert all(ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours)
        examples += [ours for ours, _ in pairs]
    for key in ("attention_mask", "labels"):
        contents = {(tuple(example[key].shape), *example[key].flatten().tolist()) for example in examples}
        assert len({id(example[key]) for example in examples}) == len(contents) < len(examples)
    assert len({id(example["input_ids"]) for example in examples}) == len(examples)
