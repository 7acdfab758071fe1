"""Damage at random: whatever a saved model's files hold, loading ends in our error or in the same weights."""

from __future__ import annotations

import json
import random
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clamu import ClamuError, ClamuModel
from hf_clamu.exact import canonical_json, digest_tensors

_MOST_SECONDS = 10
_ODD = (None, True, -1, 0, 2**31, 2**70, 1.5, "", "../x", "a" * 3000, "\u2028", [], [[]], {}, {"a": {"b": [1]}})


def _leaves(value, path=()):
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from _leaves(inner, (*path, key))


def _mutated_json(rng, value):
    path = rng.choice(list(_leaves(value))[1:] or [()])
    if not path:
        return rng.choice(_ODD)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.choice(("replace", "remove", "twice"))
    if kind == "replace":
        holder[path[-1]] = rng.choice(_ODD)
    elif kind == "remove":
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder[f"{path[-1]}2"] = holder[path[-1]]
    else:
        holder.append(holder[path[-1]])
    return value


def _mutate(rng, tiny, folder):
    """Change one file, and in most cases make its digests fit, as somebody with intent would."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    path = rng.choice(files)
    kind = rng.choice(("raw", "resealed", "resealed", "resealed"))
    if kind == "raw":
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        data[place : place + rng.choice((0, 1, 9))] = rng.choice((b"", b"\0", b"[" * 5000, b"\xff\xfe", b"NaN"))
        path.write_bytes(data)
        return path.name, kind
    if path.suffix == ".json":
        value = _mutated_json(rng, json.loads(path.read_bytes()))
        try:
            path.write_bytes(canonical_json(value))
        except UnicodeEncodeError:
            path.write_text(json.dumps(value))
    else:
        tensors = load_file(path)
        name = rng.choice(sorted(tensors))
        change = rng.choice(
            (
                lambda tensor: tensor[:-1].clone(),
                lambda tensor: tensor.to(torch.float16),
                lambda tensor: tensor.to(torch.int8),
                lambda tensor: torch.full(tensor.shape, float("nan")),
                lambda tensor: torch.zeros(0),
                lambda tensor: tensor.reshape(1, -1).clone(),
                lambda tensor: tensor + 1,
            )
        )
        tensors[rng.choice((name, name, f"{name}2"))] = change(tensors.pop(name))
        save_file(tensors, path, metadata={"format": "pt"})
    try:
        tiny.reseal(folder)
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # the ledger itself is what changed
    return path.name, kind


def _check(tiny, saved, folder, seeds):
    whole = ClamuModel.from_pretrained(saved)
    weights = digest_tensors(dict(whole.named_parameters()))
    problems = []
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        what = _mutate(random.Random(seed), tiny, folder)
        started = time.monotonic()
        try:
            found = digest_tensors(dict(ClamuModel.from_pretrained(folder).named_parameters()))
            if found != weights:
                problems.append((seed, what, "other weights"))
        except ClamuError:
            pass
        except Exception as error:
            problems.append((seed, what, f"{type(error).__name__}: {error}"[:200]))
        if time.monotonic() - started > _MOST_SECONDS:
            problems.append((seed, what, "it took long"))
    return problems


def test_damage_ends_in_our_error_or_in_the_same_weights(tiny, saved_text, tmp_path):
    assert _check(tiny, saved_text, tmp_path / "m", range(60)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "image", "lm", "words"])
def test_much_damage_ends_in_our_error_or_in_the_same_weights(tiny, saved_kind, tmp_path, kind):
    assert _check(tiny, saved_kind(kind), tmp_path / "m", range(1000, 1250)) == []
