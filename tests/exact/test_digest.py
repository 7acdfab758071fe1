from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clamu.exact import canonical_json, digest, digest_json, digest_tensors, sha256_file, sha256_hex

# name -> (tensor, name of its dtype, shape, little-endian bytes by hand)
SAMPLES = {
    "f32": (torch.tensor([1.0, -0.0]), "float32", [2], struct.pack("<2f", 1.0, -0.0)),
    "bf16": (torch.tensor([[1.0], [-2.0]], dtype=torch.bfloat16), "bfloat16", [2, 1], b"\x80\x3f\x00\xc0"),
    "f16": (torch.tensor(1.5, dtype=torch.float16), "float16", [], b"\x00\x3e"),
    "i32": (torch.tensor([1, -2], dtype=torch.int32), "int32", [2], struct.pack("<2i", 1, -2)),
    "i64": (torch.tensor([[2**40, -1]]), "int64", [1, 2], struct.pack("<2q", 2**40, -1)),
    "bool": (torch.tensor([True, False]), "bool", [2], b"\x01\x00"),
    "none": (torch.zeros(0, 3), "float32", [0, 3], b""),
}
GOLDEN = {
    "f32": "0672f20c9b0b4aa5d01482f8d6ff2bcf481f2654feef50036e41cdcce1356582",
    "bf16": "ae98f08eb6c42dafd11b002b4b4a0442ef18c7696004edcac929f7f88b274f3e",
    "f16": "0263585df9be3ba1344b0d2b8842b1b1a528cfe0bc22cba0309eccdce9f43355",
    "i32": "49bf079f7a23e298d6a6a41981ece1a808c5f4ace542200b2d20e85f885f5fba",
    "i64": "57af9d404bd8aff4530fc99f785201cde1eb42b459d7cc683cd9623311442f3f",
    "bool": "f8ac7bdc66810d75093d620a22da57b8053c755e322185394df8a5bba3733d35",
    "none": "2b3952168f224f0442a64a4b10e65fb47323a695658d7cc900ae72734382cf7d",
}
GOLDEN_ALL = "f0675d0bea24363bb55489aef40b1ed12e37b1c3899bd5f0610971f1126f9d5a"
GOLDEN_JSON = "8537721b9a4dba7de77b6975b1ab77b5b22aeb72b94a4f457779f131320db128"
JSON_VALUE = {"b": [1, 2.5, None, True], "a": {"é": "x", "A": []}}


def digest_tensor(tensor: torch.Tensor) -> str:
    return digest_tensors({"": tensor})


def by_hand(*parts: tuple[str, str, list[int], bytes]) -> str:
    sha = hashlib.sha256()
    for name, dtype, shape, raw in parts:
        header = json.dumps([name, dtype, shape]).encode()
        sha.update(struct.pack("<Q", len(header)) + header + hashlib.sha256(raw).digest())
    return sha.hexdigest()


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_digest_of_one_tensor(name):
    tensor, *parts = SAMPLES[name]
    assert digest_tensor(tensor) == by_hand(("", *parts)) == GOLDEN[name]


def test_golden_digest_of_named_tensors():
    tensors = {name: sample[0] for name, sample in SAMPLES.items()}
    assert digest_tensors(tensors) == by_hand(*((n, *SAMPLES[n][1:]) for n in sorted(SAMPLES))) == GOLDEN_ALL


def test_golden_json():
    golden = (
        '{\n  "a": {\n    "A": [],\n    "é": "x"\n  },\n  "b": [\n    1,\n    2.5,\n    null,\n    true\n  ]\n}\n'
    ).encode()
    assert canonical_json(JSON_VALUE) == golden
    assert digest_json(JSON_VALUE) == hashlib.sha256(golden).hexdigest() == GOLDEN_JSON
    assert sha256_hex(golden) == GOLDEN_JSON


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(value=st.dictionaries(st.text(max_size=3), JSON, max_size=4), data=st.data())
def test_json_does_not_depend_on_order_and_survives_a_round_trip(value, data):
    shuffled = dict(data.draw(st.permutations(list(value.items()))))
    written = canonical_json(value)
    assert canonical_json(shuffled) == written
    assert canonical_json(json.loads(written)) == written


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number(bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": [bad]})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_order_of_the_mapping_does_not_show(data):
    tensors = {name: sample[0] for name, sample in SAMPLES.items()}
    shuffled = dict(data.draw(st.permutations(list(tensors.items()))))
    assert digest_tensors(shuffled) == GOLDEN_ALL


def test_strides_and_storage_do_not_show():
    tensor = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    expected = digest_tensor(tensor)
    strided = tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    padded = torch.full((3, 4, 7), -1.0)
    padded[..., 1:6] = tensor
    assert not strided.is_contiguous()
    assert digest_tensor(strided) == expected
    assert digest_tensor(padded[..., 1:6]) == expected
    assert digest_tensor(torch.nn.Parameter(tensor)) == expected


@pytest.mark.parametrize("chunk_bytes", [1, 3, 4, 7, 64])
def test_the_size_of_chunks_does_not_show(monkeypatch, tmp_path, chunk_bytes):
    tensor = torch.arange(37, dtype=torch.int32)
    expected = digest_tensor(tensor)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    monkeypatch.setattr(digest, "CHUNK_BYTES", chunk_bytes)
    assert digest_tensor(tensor) == expected
    assert digest_tensors({"": tensor}) == expected
    assert sha256_file(path) == hashlib.sha256(bytes(range(100))).hexdigest()


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 29), bit=st.integers(0, 31))
def test_one_flipped_bit_shows(index, bit):
    tensor = torch.linspace(-1, 1, 30)
    flipped = tensor.clone()
    flipped.view(torch.int32)[index] ^= 1 << bit if bit < 31 else -(2**31)
    assert digest_tensor(flipped) != digest_tensor(tensor)
    assert digest_tensors({"w": flipped}) != digest_tensors({"w": tensor})


def test_name_shape_and_dtype_show():
    zeros = torch.zeros(4, dtype=torch.int32)
    variants = [
        {"w": zeros},
        {"v": zeros},
        {"w": zeros.reshape(2, 2)},
        {"w": zeros.reshape(4, 1)},
        {"w": zeros.float()},
        {"w": torch.zeros(8, dtype=torch.int16)},
        {"w": zeros, "x": zeros[:0]},
        {"w": zeros[:2], "x": zeros[:2]},
        {},
    ]
    assert len({digest_tensors(v) for v in variants}) == len(variants)


def test_swapped_values_show():
    a, b = torch.zeros(2), torch.ones(2)
    assert digest_tensors({"a": a, "b": b}) != digest_tensors({"a": b, "b": a})


def test_a_fresh_process_with_another_hash_seed_finds_the_same():
    program = (
        "import torch\n"
        "from hf_clamu.exact import digest_json, digest_tensors\n"
        "names = list({'f32', 'x', 'yy', 'zzz', 'w1', 'w2'})\n"  # the order of a set follows the hash seed
        "print(digest_tensors({'': torch.tensor([1.0, -0.0])}))\n"
        "print(digest_tensors({name: torch.full((2,), len(name)) for name in names}))\n"
        "print(digest_json({name: len(name) for name in names}))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    names = ["f32", "x", "yy", "zzz", "w1", "w2"]
    assert found.stdout.split() == [
        GOLDEN["f32"],
        digest_tensors({name: torch.full((2,), len(name)) for name in names}),
        digest_json({name: len(name) for name in names}),
    ]


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_keys = st.text(max_size=3) | st.integers(0, 3)
_values = st.recursive(
    _scalars, lambda of: st.lists(of) | st.lists(of).map(tuple) | st.dictionaries(_keys, of), max_leaves=30
)


@given(_values)
@settings(max_examples=300, deadline=None)
def test_json_is_that_of_the_standard_library(value):
    try:
        expected = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError:  # keys of two kinds have no order
        with pytest.raises(TypeError):
            canonical_json(value)
        return
    try:
        expected_bytes = expected.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        with pytest.raises(UnicodeEncodeError):
            canonical_json(value)
        return
    assert canonical_json(value) == expected_bytes


@pytest.mark.parametrize("value", [float("nan"), [[1], float("inf")], {"a": {"b": float("-inf"), "c": [1]}}, [{1, 2}]])
def test_what_is_no_json_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)
