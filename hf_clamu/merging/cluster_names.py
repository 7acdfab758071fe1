"""Names of clusters that last: a function of who is merged, which seldom changes when a member leaves or comes.

A cluster is named by the smallest of its members' hashes. The name stays until that very member leaves, or one with a
smaller hash comes: of two sets of members they have the same name with a probability of what they share, |A ∩ B| /
|A ∪ B| (Broder's min-hash). Clusters share no member, so no two have the same hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_clamu.exact import digest_json

__all__ = ["RESERVED_NAMES", "is_plain", "member_hash", "own_name", "words"]

_ADJECTIVES = (
    "amber autumn bold brave bright brisk calm cedar clear clever copper coral crisp dapper deep eager early fair "
    "fleet fond frosty gentle gilded glad golden grand green happy hazel honest humble ivory jade keen kind "
    "lively loyal lucky lunar mellow merry misty modest noble olive patient placid polar proud quick quiet rapid "
    "royal ruby rustic silver smooth snowy solar steady sunny tidy vivid warm"
).split()
_NOUNS = (
    "badger bear beaver bison bream camel condor crane cricket curlew deer dove eagle egret falcon ferret finch "
    "fox gannet gecko goose grebe gull hare hawk heron horse ibis jackal jay kestrel koala lark lemur linnet lion "
    "llama lynx magpie marmot marten merlin mole moose newt oriole osprey otter owl panda pelican plover puffin "
    "quail raven robin seal shrew sparrow stork swan tapir walrus wren"
).split()
_SHORTEST = 3  # hexadecimal digits behind the words

# What a program may ask for in a cluster's place.
RESERVED_NAMES = frozenset({"", "all", "auto", "base", "false", "global", "none", "null", "own", "true"})
_PREFIX = "cluster:"


def member_hash(run_seed: int, task_id: str) -> str:
    """Return the hash of a task by which its cluster may be named: 64 hexadecimal digits."""
    return digest_json([run_seed, "cluster-name", task_id])


def words(digests: Iterable[str]) -> tuple[str, ...]:
    """Return a readable name for each of some hashes: two words and as many digits as tell them apart, three or more.

    Args:
        digests (*iterable* of `str`): different hexadecimal digests.

    Example:

    ```python
    >>> words([member_hash(0, "user_17"), member_hash(0, "user_18")])
    ('warm-condor-9c1', 'lunar-newt-7f3')

    ```
    """
    digests = tuple(digests)
    length = dict.fromkeys(digests, _SHORTEST)
    while True:
        named: dict[str, list[str]] = {}
        for digest in digests:
            named.setdefault(_worded(digest, length[digest]), []).append(digest)
        alike = [digest for same in named.values() if len(same) > 1 for digest in same]
        if not alike:
            return tuple(_worded(digest, length[digest]) for digest in digests)
        for digest in alike:
            length[digest] += 1


def _worded(digest: str, length: int) -> str:
    # From the end: the smallest of many hashes start with zeros.
    high, low = divmod(int(digest[-3:], 16), 64)
    return f"{_ADJECTIVES[high]}-{_NOUNS[low]}-{digest[-3 - length : -3]}"


def own_name(value: str) -> str:
    """Return the name of a cluster that has one in the data (a task's id, the value of a column).

    It is the value itself, unless that could be taken for something else; different values give different names.

    Args:
        value (`str`): any text.

    Example:

    ```python
    >>> own_name("north"), own_name("17"), own_name("auto")
    ('north', 'cluster:17', 'cluster:auto')

    ```
    """
    return value if is_plain(value) and not value.startswith(_PREFIX) else f"{_PREFIX}{value}"


def is_plain(name: str) -> bool:
    """Whether a name can be taken for nothing but a name: it is no number and no reserved word."""
    bare = name.strip()
    return bare.casefold() not in RESERVED_NAMES and not bare.isnumeric() and not _is_number(bare)


def _is_number(text: str) -> bool:
    readings: Sequence[object] = (int, lambda value: int(value, 0), float, complex)
    for read in readings:
        try:
            read(text)  # type: ignore[operator]
        except ValueError:
            continue
        return True
    return False
