"""Proofs that a task is, or is not, in a ledger: sound, silent about others, and none that was edited is believed."""

from __future__ import annotations

import copy
import hashlib
import json
import random

import pytest

from hf_clamu.checkpoint.ledger import sealed
from hf_clamu.checkpoint.membership.hash_tree import audit_path, leaf_hash, path_root, tree_root
from hf_clamu.checkpoint.membership.proof import check_membership, prove_membership
from hf_clamu.errors import CheckpointFormatError, RecipeError
from hf_clamu.exact import canonical_json


def _mth(leaves):
    """The tree head as RFC 6962 defines it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + _mth(leaves[:k]) + _mth(leaves[k:])).digest()


# Of Certificate Transparency's own tests: the leaves of RFC 6962 trees and the roots over the first n of them.
CT_LEAVES = [
    bytes.fromhex(one)
    for one in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("count", CT_ROOTS)
def test_known_trees(count):
    assert tree_root([leaf_hash(leaf) for leaf in CT_LEAVES[:count]]).hex() == CT_ROOTS[count]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
def test_paths_lead_to_the_root_of_the_definition(count):
    leaves = [leaf_hash(bytes([number])) for number in range(count)]
    root = tree_root(leaves)
    assert root == _mth(leaves)
    for index, leaf in enumerate(leaves):
        path = audit_path(leaves, index)
        assert path_root(leaf, index, count, path) == root
        assert path_root(leaf, index, count, path[:-1]) != root or count == 1
        assert path_root(leaf, index, count, [*path, root]) is None
        assert path_root(leaf, count, count, path) is None
        if count > 1:
            assert path_root(leaf, (index + 1) % count, count, path) != root


def _ledger(count, *, seed=0):
    draw = random.Random(seed)
    tasks = {f"{draw.getrandbits(256):064x}": {"vector_digest": f"{draw.getrandbits(256):064x}"} for _ in range(count)}
    return sealed({"format_version": 4, "files": {}, "parameters": ["w"], "tasks": tasks})


@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
def test_who_is_in_and_who_is_not(count):
    ledger = _ledger(count)
    for task_id in list(ledger["tasks"])[:20]:
        proof = json.loads(canonical_json(prove_membership(ledger, task_id, keyed=True)))
        assert check_membership(proof, ledger["digest"]) is True
    for number in range(20):
        absent = hashlib.sha256(bytes([number])).hexdigest()
        proof = json.loads(canonical_json(prove_membership(ledger, absent, keyed=True)))
        assert check_membership(proof, ledger["digest"]) is False
        assert len(proof["leaves"]) <= 2


def test_it_shows_no_other_task():
    ledger = _ledger(40)
    wanted, *others = ledger["tasks"]
    for proof in (prove_membership(ledger, wanted, keyed=True), prove_membership(ledger, "f" * 64, keyed=True)):
        text = canonical_json(proof).decode()
        assert not [one for one in others if one in text]
        assert not [one for one in others if ledger["tasks"][one]["vector_digest"] in text]


def test_absence_under_plain_ids_would_show_others():
    ledger = _ledger(4)
    with pytest.raises(RecipeError, match=r"No merged task is called 'nobody'.*keyed ids alone"):
        prove_membership(ledger, "nobody", keyed=False)
    assert check_membership(prove_membership(ledger, next(iter(ledger["tasks"])), keyed=False))


def _edits(proof, other, draw):
    """One edit of a proof at a random place."""
    forged = copy.deepcopy(proof)
    kind = draw.randrange(8)
    leaf = draw.choice(forged["leaves"])
    if kind == 0:
        forged["is_merged"] = not forged["is_merged"]
    elif kind == 1:
        forged["task"] = other["task"]
    elif kind == 2:
        leaf["index"] += draw.choice((-1, 1))
    elif kind == 3 and leaf["path"]:
        leaf["path"].pop()
    elif kind == 4:
        key = draw.choice(("id", "entry"))
        leaf[key] = _flipped(leaf[key], draw)
    elif kind == 5:
        forged["tasks"]["count"] += draw.choice((-1, 1, 2**40))
    elif kind == 6:
        forged["leaves"] = other["leaves"]
    else:
        key = draw.choice(("ledger_digest", "rest"))
        forged[key] = _flipped(forged[key], draw)
    return forged


def _flipped(digits, draw):
    place = draw.randrange(len(digits))
    return f"{digits[:place]}{(int(digits[place], 16) + 1) % 16:x}{digits[place + 1 :]}"


def test_no_edited_proof_is_believed():
    draw, ledger = random.Random(0), _ledger(37)
    merged = [prove_membership(ledger, one, keyed=True) for one in list(ledger["tasks"])[:5]]
    absent = [prove_membership(ledger, f"{number:064x}", keyed=True) for number in range(5)]
    for number in range(500):
        proof, other = draw.sample(merged if number % 2 else absent, 2)
        forged = _edits(proof, other, draw)
        if forged == proof:
            continue
        with pytest.raises(CheckpointFormatError, match="The proof shows nothing"):
            check_membership(forged, ledger["digest"])


def test_a_gap_between_leaves_that_are_no_neighbours():
    """Whoever hides a task must not get by with the leaves around its own."""
    ledger = _ledger(9)
    proofs = sorted(
        (prove_membership(ledger, one, keyed=True)["leaves"][0] for one in ledger["tasks"]),
        key=lambda leaf: leaf["index"],
    )
    hidden = next(one for one in ledger["tasks"] if hashlib.sha256(one.encode()).hexdigest() == proofs[4]["id"])
    forged = prove_membership(ledger, hidden, keyed=True) | {"is_merged": False, "leaves": [proofs[3], proofs[5]]}
    with pytest.raises(CheckpointFormatError, match="not merged"):
        check_membership(forged, ledger["digest"])
    with pytest.raises(CheckpointFormatError, match="not merged"):
        check_membership({**forged, "leaves": [proofs[3]]}, ledger["digest"])


@pytest.mark.parametrize("value", [None, [], "x", {}, {"proof": "hf_clamu task membership 1"}, {"proof": 1}])
def test_other_files_are_no_proofs(value):
    with pytest.raises(CheckpointFormatError, match="not what `clamu prove` writes"):
        check_membership(value)


def test_the_ledgers_digest_covers_every_entry():
    ledger = _ledger(6)
    for change in (
        lambda edited: edited["tasks"].pop(next(iter(edited["tasks"]))),
        lambda edited: edited["tasks"].update({"new": {}}),
        lambda edited: edited["tasks"][next(iter(edited["tasks"]))].update(cluster=1),
        lambda edited: edited.update(parameters=["v"]),
        lambda edited: edited.update(more=1),
    ):
        edited = copy.deepcopy({key: value for key, value in ledger.items() if key != "digest"})
        change(edited)
        assert sealed(edited)["digest"] != ledger["digest"]
