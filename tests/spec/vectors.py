"""Test vectors of the saved formats: a tiny model with receipts and signatures, and what makes each invalid."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2] / "docs" / "spec"
VECTORS, SCHEMAS = ROOT / "vectors", ROOT / "schemas"
_DIGEST = "ab" * 32
# Name, file, path of keys inside, new value (absent: removed), and who finds it: the schema, or a reader only.
_INVALID: tuple[tuple[str, str, list[Any], Any, str], ...] = (
    ("no model type", "config", ["model_type"], None, "schema"),
    ("newer format", "config", ["format_version"], 5, "schema"),
    ("alpha is a text", "config", ["alpha"], "1.0", "schema"),
    ("negative count", "config", ["num_tasks"], -1, "schema"),
    ("unknown entry", "config", ["mystery"], 1, "schema"),
    ("short digest", "config", ["delta_digest"], "abcd", "schema"),
    ("shards of no size", "config", ["max_shard_size"], 0, "schema"),
    ("base model without digest", "config", ["base_model", "digest"], None, "schema"),
    ("counts that the ledger does not have", "config", ["num_tasks"], 99, "reader"),
    ("digest of another delta", "config", ["delta_digest"], _DIGEST, "reader"),
    ("unknown setting", "config", ["arguments", "mystery"], 1, "reader"),
    ("no digest", "ledger", ["digest"], None, "schema"),
    ("no files", "ledger", ["files"], None, "schema"),
    ("file without size", "ledger", ["files", "config.json", "size"], None, "schema"),
    ("negative bound", "ledger", ["tasks", "owner_02", "bounds", 0], -1, "schema"),
    ("bound that is no integer", "ledger", ["tasks", "owner_02", "bounds", 0], 1.5, "schema"),
    ("short vector digest", "ledger", ["tasks", "owner_02", "vector_digest"], "abcd", "schema"),
    ("file outside", "ledger", ["files", "../evil.json"], {"sha256": _DIGEST, "size": 1}, "reader"),
    ("file that runs code", "ledger", ["files", "model.py"], {"sha256": _DIGEST, "size": 1}, "reader"),
    ("gap in the clusters", "ledger", ["tasks", "owner_02", "cluster"], 7, "reader"),
    ("parameter that the delta lacks", "ledger", ["parameters", 0], "another.weight", "reader"),
    ("digest that does not fit", "ledger", ["digest"], _DIGEST, "reader"),
    ("mask of another type", "mask", ["peft_type"], "LORA", "schema"),
    ("mask without digest", "mask", ["mask_digest"], None, "schema"),
    ("newer format of routes", "routes", ["format"], 2, "schema"),
    ("adapter outside", "routes", ["adapters", "global"], "..", "schema"),
    ("task without adapter", "routes", ["tasks", "owner_02"], "cluster_999", "reader"),
    ("time without zone", "receipt", ["time"], "2026-11-27T03:00:00", "schema"),
    ("unknown request", "receipt", ["request"], "rename", "schema"),
    ("unknown field", "receipt", ["mystery"], 1, "schema"),
    ("short commitment", "receipt", ["tasks", 0], "abcd", "schema"),
    ("no requests", "receipt", ["num_requests"], 0, "schema"),
    ("short salt", "receipt", ["private", "salts", "owner_00"], "abcd", "schema"),
    ("salt of another commitment", "receipt", ["private", "salts", "owner_00"], "ab" * 16, "reader"),
    ("count of tasks that does not fit", "receipt", ["num_tasks", "after"], 9, "reader"),
    ("unknown source", "statement", ["predicate", "source"], "moved", "schema"),
    ("short name of the one before", "statement", ["predicate", "previous"], "abcd", "schema"),
    ("private part in public", "statement", ["predicate", "receipt", "private"], {"salts": {}}, "schema"),
    ("later fact in the request", "statement", ["predicate", "receipt", "archive"], "destroyed", "schema"),
    ("other statement type", "statement", ["_type"], "https://in-toto.io/Statement/v0.1", "schema"),
    ("state that the receipt does not lead to", "statement", ["subject", 0, "digest", "sha256"], _DIGEST, "reader"),
    ("no state before", "note", ["changes", 0, "before"], None, "schema"),
    ("archived file outside", "note", ["changes", 0, "spent"], ["../evil"], "schema"),
    ("short digest in a proof", "proof", ["rest"], "abcd", "schema"),
    ("leaf without index", "proof", ["leaves", 0, "index"], None, "schema"),
    ("proof with more entries", "proof", ["mystery"], 1, "schema"),
    ("proof for another ledger", "proof", ["ledger_digest"], _DIGEST, "reader"),
    ("path that leads elsewhere", "proof", ["leaves", 0, "path", 0], _DIGEST, "reader"),
    ("entry of another task", "proof", ["entry", "num_train"], 1000, "reader"),
    ("proof of the contrary", "proof", ["is_merged"], False, "reader"),
    ("evidence of a newer version", "evidence", ["type"], "https://hf_clamu/evidence/v2", "schema"),
    ("private part in evidence", "evidence", ["receipt", "content", "private"], {"salts": {}}, "schema"),
    ("evidence without what is not shown", "evidence", ["not_shown"], None, "schema"),
    ("short digest of a file in evidence", "evidence", ["model", "files", "config.json"], "abcd", "schema"),
    ("unknown kind of finding", "evidence", ["findings", 0, "kind"], "rumour", "schema"),
    ("unknown verdict of an audit", "evidence", ["findings", 0, "result", "verdict"], "likely", "schema"),
    ("states that the receipts do not have", "note", ["changes", 0, "after"], _DIGEST, "reader"),
)


def files() -> dict[str, str]:
    """Return a file of the vectors for each schema; of a statement, its payload has the schema."""
    receipts = {path.name: json.loads(path.read_bytes()) for path in (VECTORS / "receipts").iterdir()}
    first = max((one["num_tasks"]["after"], name) for name, one in receipts.items() if name.endswith(".json"))[1]
    return {
        "config": "model/config.json",
        "ledger": "model/ledger.json",
        "mask": "model/masks/cluster_000/adapter_config.json",
        "routes": "routes.json",
        "receipt": f"receipts/{first}",
        "statement": f"receipts/{min(name for name in receipts if name.endswith('.dsse'))}",
        "note": "journal/note.json",
        "proof": "proof.json",
        "evidence": "evidence.json",
    }


def invalid() -> list[dict[str, Any]]:
    """Return what is written to `invalid.json`."""
    entries, named = [], files()
    for name, schema, path, value, found_by in _INVALID:
        change = {"remove": True} if value is None else {"value": value}
        entries.append({"name": name, "file": named[schema], "path": path, **change, "found_by": found_by})
    return entries


def changed(value: Any, entry: dict[str, Any]) -> Any:
    """Return a JSON value with the change that an entry of `invalid.json` makes."""
    found = copy.deepcopy(value)
    *way, last = entry["path"]
    inner = found
    for key in way:
        inner = inner[key]
    if entry.get("remove"):
        del inner[last]
    else:
        inner[last] = entry["value"]
    return found


def evidence() -> dict[str, Any]:
    """Return the evidence of the last request on the model of the vectors, whose signatures are checked."""
    from hf_clamu.proofs.evidence.collecting import collect_evidence
    from hf_clamu.signing import load_public_key

    keys = [load_public_key(VECTORS / "key.pub")]
    values = collect_evidence(str(VECTORS / "model"), receipts=VECTORS / "receipts", keys=keys)
    values["model"]["name"], values["receipts"] = "model", "receipts"
    return values


def write() -> None:
    """Make the vectors anew; their digests are other ones then."""
    import tempfile

    from conftest import Tiny
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from hf_clamu.checkpoint.ledger import read_ledger
    from hf_clamu.checkpoint.membership.proof import prove_membership
    from hf_clamu.exact import canonical_json
    from hf_clamu.exact.linear_digest import linear_digest
    from hf_clamu.operations.lifecycle.pending import Change, record_pending
    from hf_clamu.operations.signed.signing import sign_model
    from hf_clamu.signing import load_signing_key
    from hf_clamu.storage import Journal, parse_json

    shutil.rmtree(VECTORS, ignore_errors=True)
    VECTORS.mkdir(parents=True)
    private = ec.generate_private_key(ec.SECP256R1())
    key = load_signing_key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = Tiny.train("image", finetune_steps=1, mask_steps=1, linear_digest=True)
        for task_id in ("owner_00", "owner_01"):
            model.unmerge_task(task_id, receipt_dir=work / "receipts")
        model.save_pretrained(work / "model")
        (work / "model" / "README.md").unlink()  # the card is no part of what a reader checks
        state = model.state_digest()
        signed = sign_model(work / "model", state, key, receipts=work / "receipts")
        shutil.copytree(work / "model", VECTORS / "model")
        shutil.copytree(work / "receipts", VECTORS / "receipts")
        shutil.copy(work / "model.sig", VECTORS / "model.sig")
        receipts = [parse_json(path.read_bytes()) for path in sorted((work / "receipts").glob("*.json"))]
        receipt = min(receipts, key=lambda one: one["num_tasks"]["after"] * -1)
        journal = Journal(work / "journal")
        with journal.locked():
            change = Change(**receipt["digests"], receipts=[receipt], receipt_dir=str(work / "receipts"))
            record_pending(journal, [change], work / "model")
        (VECTORS / "journal").mkdir()
        shutil.copy(journal.folder / "note.json", VECTORS / "journal" / "note.json")
    (VECTORS / "key.pub").write_bytes(key.public.pem)
    tasks = {task_id: f"cluster_{model.cluster_of(task_id):03d}" for task_id in model.tasks}
    names = ["global", *(f"cluster_{number:03d}" for number in range(len(model.clusters)))]
    routes = {"format": 1, "base_model": "base_model", "revision": None, "keyed": False, "tasks": tasks}
    (VECTORS / "routes.json").write_bytes(canonical_json({**routes, "adapters": {name: name for name in names}}))
    ledger = read_ledger(VECTORS / "model")
    (VECTORS / "proof.json").write_bytes(canonical_json(prove_membership(ledger, "owner_02", keyed=False)))
    linear = linear_digest(model.merged.state.delta)
    digests = {
        "state_digest": state,
        "ledger_digest": ledger["digest"],
        "linear_digest": hashlib.sha256(linear.numpy().tobytes()).hexdigest(),
        "delta_digest": model.clamu_config.delta_digest,
        "base_model": model.clamu_config.base_model["digest"],
        "key_id": key.public.key_id,
        "statements": signed.num_statements,
    }
    (VECTORS / "digests.json").write_bytes(canonical_json(digests))
    (VECTORS / "evidence.json").write_bytes(canonical_json(evidence()))
    (VECTORS / "invalid.json").write_bytes(canonical_json(invalid()))
