"""Integers and bytes: everything on which the promise "byte for byte" rests.

Needs torch and numpy alone and knows nothing of models, data sets or files of ours.

- `fixed_point`: the integer grid of task vectors
- `encoding`: weights to a task vector
- `accumulator`: exact sums of task vectors
- `bitmask`: masks with one bit per weight
- `switch`: live weights under one mask after another
- `bit_flips`, `stamps`: how it flips bits, and how it notices changes
- `digest`: SHA-256 of JSON, files and tensors
- `guard`: the lock of a live model
- `passes`, `threads`: the size of passes over tensors, and work in parallel
"""

from hf_clamu.exact.accumulator import LEAST_BITS, DeltaAccumulator, TaskVector, VectorSum, narrowest_dtype
from hf_clamu.exact.bitmask import (
    ALL_WEIGHTS,
    GLOBAL_MODEL,
    NO_WEIGHTS,
    PackedMask,
    check_padding,
    pack_mask,
    packed_size,
    unpack_mask,
)
from hf_clamu.exact.digest import (
    canonical_json,
    digest_json,
    digest_tensors,
    sha256_file,
    sha256_files,
    sha256_hex,
    value_digests,
)
from hf_clamu.exact.encoding import encode_vector
from hf_clamu.exact.fixed_point import FixedPoint, fraction_bits_for
from hf_clamu.exact.guard import Guard
from hf_clamu.exact.passes import bits_dtype, entries_per_pass
from hf_clamu.exact.switch import WeightSwitch

__all__ = [
    "ALL_WEIGHTS",
    "GLOBAL_MODEL",
    "LEAST_BITS",
    "NO_WEIGHTS",
    "DeltaAccumulator",
    "FixedPoint",
    "Guard",
    "PackedMask",
    "TaskVector",
    "VectorSum",
    "WeightSwitch",
    "bits_dtype",
    "canonical_json",
    "check_padding",
    "digest_json",
    "digest_tensors",
    "encode_vector",
    "entries_per_pass",
    "fraction_bits_for",
    "narrowest_dtype",
    "pack_mask",
    "packed_size",
    "sha256_file",
    "sha256_files",
    "sha256_hex",
    "unpack_mask",
    "value_digests",
]
