"""The specification is what the package does: schemas and readers agree on valid and invalid test vectors."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from hf_clamu import CheckpointFormatError, ClamuModel, SignatureError
from hf_clamu.checkpoint.ledger import read_ledger, sealed
from hf_clamu.checkpoint.membership.proof import check_membership
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import canonical_json
from hf_clamu.exact.linear_digest import add_digests, linear_digest
from hf_clamu.models.exports.routes import Routes
from hf_clamu.operations.lifecycle.pending import read_pending
from hf_clamu.operations.lifecycle.receipts import is_receipt, read_receipts
from hf_clamu.operations.signed.checking import require_trusted
from hf_clamu.operations.signed.links import Link
from hf_clamu.signing import Envelope, load_public_key
from hf_clamu.storage import Journal
from tests.spec.vectors import SCHEMAS, VECTORS, changed, evidence, files, invalid

jsonschema = pytest.importorskip("jsonschema", reason="not installed: pip install -e .[dev]")
referencing = pytest.importorskip("referencing", reason="comes with jsonschema: pip install -e .[dev]")
INVALID = json.loads((VECTORS / "invalid.json").read_bytes())
DIGESTS = json.loads((VECTORS / "digests.json").read_bytes())


@pytest.fixture(scope="module")
def validators():
    """A validator for each schema, by its name."""
    schemas = {path.name.partition(".")[0]: json.loads(path.read_bytes()) for path in sorted(SCHEMAS.iterdir())}
    resources = [(one["$id"], referencing.Resource.from_contents(one)) for one in schemas.values()]
    registry = referencing.Registry().with_resources(resources)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {name: jsonschema.Draft202012Validator(one, registry=registry) for name, one in schemas.items()}


@pytest.fixture
def vectors(tmp_path):
    shutil.copytree(VECTORS, tmp_path / "v")
    return tmp_path / "v"


def _value(name):
    value = json.loads((VECTORS / name).read_bytes())
    return json.loads(Envelope.from_dict(value).payload) if name.endswith(".dsse") else value


def test_every_file_has_a_schema_that_it_fits(validators):
    assert set(files()) == set(validators)
    for schema, name in files().items():
        validators[schema].validate(_value(name))
    for path in (VECTORS / "receipts").iterdir():
        kind = "statement" if path.suffix == ".dsse" else "receipt"
        validators[kind].validate(_value(f"receipts/{path.name}"))


def test_the_model_has_the_known_digests(vectors):
    checkpoint = read_checkpoint(vectors / "model", strict=True)
    assert checkpoint.state_digest == DIGESTS["state_digest"]
    assert checkpoint.config.delta_digest == DIGESTS["delta_digest"]
    assert ClamuModel.from_pretrained(vectors / "model", trusted_keys=[vectors / "key.pub"]).tasks == (
        "owner_02",
        "owner_03",
    )


def test_signature_and_receipts_are_valid(vectors):
    key = load_public_key(vectors / "key.pub")
    assert key.key_id == DIGESTS["key_id"]
    assert hashlib.sha256((vectors / "key.pub").read_bytes()).hexdigest() == key.key_id
    found = require_trusted(vectors / "model", [key]).check_receipts(
        DIGESTS["state_digest"], vectors / "receipts", [key], required=True
    )
    assert len(found) == DIGESTS["statements"]
    (vectors / "model/config.json").write_bytes((vectors / "model/config.json").read_bytes() + b" ")
    with pytest.raises(SignatureError):
        require_trusted(vectors / "model", [key])


def test_what_is_committed_is_what_the_command_writes():
    assert INVALID == invalid()
    assert {entry["found_by"] for entry in INVALID} == {"schema", "reader"}
    assert len({entry["name"] for entry in INVALID}) == len(INVALID)


@pytest.mark.parametrize("entry", INVALID, ids=lambda entry: entry["name"].replace(" ", "-"))
def test_an_invalid_vector_is_found(validators, vectors, entry):
    schema = next(kind for kind, name in files().items() if name == entry["file"])
    value = changed(_value(entry["file"]), entry)
    assert validators[schema].is_valid(value) == (entry["found_by"] == "reader")
    with pytest.raises((CheckpointFormatError, ValueError)):
        _read(vectors, schema, entry, value)


def _read(vectors: Path, schema: str, entry: dict, value: object) -> None:
    """Read a changed file as this package does; an error, or a ValueError where what is odd is passed over."""
    path = vectors / entry["file"]
    if schema == "statement":
        Link.read(Envelope(json.dumps(value).encode()))
        return
    path.write_bytes(canonical_json(value))
    if schema in ("config", "mask", "ledger"):
        if schema != "mask":  # which PEFT alone reads; here its digest tells
            _seal(vectors / "model", entry)
        read_checkpoint(vectors / "model")
    elif schema == "routes":
        Routes.read(vectors)
    elif schema == "proof":
        check_membership(value, DIGESTS["ledger_digest"])
    elif schema == "evidence":
        raise ValueError("this package writes it, and reads none")
    elif schema == "receipt":
        assert not is_receipt(value)
        assert len(read_receipts(vectors / "receipts")) == 1
        raise ValueError("a reader passes over it")
    else:
        assert read_pending(Journal(vectors / "journal")) == []
        raise ValueError("a reader passes over it")


def _seal(model: Path, entry: dict) -> None:
    """Make digests fit again, so that what was changed is all that is wrong."""
    ledger = json.loads((model / "ledger.json").read_bytes())
    name = entry["file"].removeprefix("model/")
    if name != "ledger.json":
        data = (model / name).read_bytes()
        ledger["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    elif entry["path"] == ["digest"]:
        return
    del ledger["digest"]
    (model / "ledger.json").write_bytes(canonical_json(sealed(ledger)))


def test_the_proof_leads_to_the_ledger(vectors):
    assert read_ledger(vectors / "model")["digest"] == DIGESTS["ledger_digest"]
    assert check_membership(_value("proof.json"), DIGESTS["ledger_digest"]) is True


def test_the_evidence_is_of_this_model():
    known, now = _value("evidence.json"), evidence()
    assert {**now, "checked": "", "hf_clamu": ""} == {**known, "checked": "", "hf_clamu": ""}
    assert known["model"]["ledger_digest"] == DIGESTS["ledger_digest"]
    assert known["signature"]["key_id"] == DIGESTS["key_id"]
    assert {one["result"]["verdict"] for one in known["findings"]} == {"proven"}


def test_the_linear_digests_add_up(vectors):
    state = read_checkpoint(vectors / "model").state
    found = [add_digests(state.linear_digests), linear_digest(state.delta)]
    assert {hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in found} == {DIGESTS["linear_digest"]}


def test_the_valid_note_and_routes_are_read(vectors):
    (change,) = read_pending(Journal(vectors / "journal"))
    assert change.receipts == [json.loads((VECTORS / files()["receipt"]).read_bytes())]
    assert set(Routes.read(vectors).tasks) == {"owner_02", "owner_03"}
