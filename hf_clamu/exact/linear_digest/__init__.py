"""A digest of integer task vectors that adds up: `H(a + b) = H(a) + H(b)`.

So whoever has the digests of the merged tasks can tell whether a merged delta is their sum, without any data. It is
collision resistant as long as no short solution of a Module-SIS problem over the ring `Z_q[X] / (X**1024 + 1)` can be
found (see `security`). docs/linear-digest.md is its specification.

transform       from polynomials with integer coefficients to their values, modulo q
public_key      the public numbers that values are multiplied with, from a name
digest          the digest of a task vector or of a merged delta, and sums of digests
security        how hard it is to find two vectors with one digest, estimated

Source: M. Ajtai, "Generating hard instances of lattice problems" (1996); V. Lyubashevsky, D. Micciancio, C. Peikert,
A. Rosen, "SWIFFT: a modest proposal for FFT hashing" (2008).
"""

from hf_clamu.exact.linear_digest.digest import DIGEST_SHAPE, add_digests, linear_digest, subtract_digests
from hf_clamu.exact.linear_digest.security import security_bits
from hf_clamu.exact.linear_digest.transform import DEGREE, MODULUS

__all__ = [
    "DEGREE",
    "DIGEST_SHAPE",
    "MODULUS",
    "add_digests",
    "linear_digest",
    "security_bits",
    "subtract_digests",
]
