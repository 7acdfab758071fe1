"""The values of an evidence document: from a model, its receipts, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_clamu.checkpoint.checkpoint import Checkpoint
from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.checkpoint.ledger import read_ledger
from hf_clamu.errors import RecipeError
from hf_clamu.exact import digest_json, sha256_file
from hf_clamu.hub.pull import is_repo_id
from hf_clamu.models.requesting import recipe_of
from hf_clamu.operations.intake.findings import read_findings
from hf_clamu.operations.intake.received import ReceivedRequest, now_text
from hf_clamu.operations.lifecycle.receipts import salted_ids
from hf_clamu.operations.lifecycle.target import receipts_of
from hf_clamu.operations.signed.chain import Statements
from hf_clamu.operations.signed.checking import TrustedModel, require_trusted
from hf_clamu.operations.signed.links import core_of
from hf_clamu.operations.signed.signing import signature_of
from hf_clamu.proofs.audit import audit_change, audit_model
from hf_clamu.proofs.evidence.cases import Case, find_case
from hf_clamu.proofs.evidence.findings import Finding, finding_of
from hf_clamu.proofs.evidence.not_shown import not_shown
from hf_clamu.proofs.saved import folder_of, read_saved
from hf_clamu.signing import PublicKey
from hf_clamu.version import __version__

__all__ = ["EVIDENCE_TYPE", "collect_evidence"]

EVIDENCE_TYPE = "https://hf_clamu/evidence/v1"


def collect_evidence(
    model: str,
    *,
    receipts: Path | None = None,
    request: str | None = None,
    asked: ReceivedRequest | None = None,
    findings: Sequence[tuple[str, Any]] = (),
    before: str | None = None,
    keys: Sequence[PublicKey] = (),
    with_ids: bool = False,
) -> dict[str, Any]:
    """Return what is known of a request that was carried out, for its owner or an auditor.

    The model is read as it is now, and audited. Results of verification, audit and attack that were recorded for the
    state that the request led to, or for the present one, are taken in.

    Args:
        model (`str`): folder or Hub id.
        receipts (`Path`, *optional*): folder of the receipts; by default the one that the commands use.
        request (`str`, *optional*): its name, or that of its receipt's file; by default the last request.
        asked (`ReceivedRequest`, *optional*): a later request, which had nothing left to do; then the receipt of its
            outcome is shown, and what it asked for.
        findings (*sequence* of *tuple* of `str` and *JSON-able*): what `clamu verify`, `audit` or `attack` printed
            with `--json`, each with what it is called in a message.
        before (`str`, *optional*): the model before the request: folder, Hub id or `ORG/NAME@REVISION`; the change is
            audited then.
        keys (*sequence* of `PublicKey`): that are trusted: model and receipts must be signed with one of them.
        with_ids (`bool`): name the tasks of the request; by default nobody is named.

    Returns:
        *dict*: JSON-able; docs/spec/schemas/evidence.schema.json describes it.

    Raises:
        RecipeError: if there is no such receipt, a finding is of another kind or state, or ids are asked for that the
            receipt does not have.
        CheckpointFormatError: if the model is damaged, or the receipt says what the model does not.
        SignatureError: if keys are given, and model or receipts were not signed with them.
    """
    folder, place = folder_of(model), receipts or receipts_of(model)
    trusted = require_trusted(folder, keys) if keys else None
    now = read_saved(model)
    statements = Statements.read(place)
    case = find_case(model, place, statements, now, request if asked is None else _answer_of(asked))
    if trusted is not None:
        trusted.require_state(now)
        trusted.check_receipts(now.state_digest, place, keys, required=True)
    found = [*_found_now(now, case, before), *_recorded(model, case), *_given(case, findings)]
    values = {
        "type": EVIDENCE_TYPE,
        "hf_clamu": __version__,
        "checked": now_text(),
        "model": _model_facts(model, folder, now),
        **_request_facts(now, case, asked, with_ids=with_ids),
        "receipts": None if receipts is None else str(receipts),
        "before": before,
        "later": [_receipt_facts(path, statements.receipts[path]) for path in case.later],
        "findings": [{**one.to_dict(), "is_now": is_now} for is_now, one in found],
        "signature": _signature_facts(folder, statements, case, trusted),
    }
    return {**values, "not_shown": not_shown(values)}


def _found_now(now: Checkpoint, case: Case, before: str | None) -> list[tuple[bool, Finding]]:
    """Audit the model as it is, and the change that led to it where the state before is at hand."""
    found = [(True, finding_of({**audit_model(now).to_dict(), "state_digest": case.now}, "the audit"))]
    if before is None:
        return found
    if case.after != case.now:
        raise RecipeError(
            f"--before is for the last request, and {len(case.later)} requests came after {case.file.name}. Leave it "
            "out, or ask for the evidence of the last one."
        )
    earlier = read_saved(before)
    if earlier.state_digest != case.before:
        raise RecipeError(
            f"{before} is the state {earlier.state_digest[:16]}…, and {case.file.name} started from "
            f"{case.before[:16]}…. Give the model as it was before this request."
        )
    report = audit_change(earlier, now, receipt=case.receipt).to_dict()
    facts = {"state_digest": case.now, "digests": {"before": case.before, "after": case.now}}
    return [*found, (True, finding_of({**report, **facts}, "the audit"))]


def _recorded(model: str, case: Case) -> list[tuple[bool, Finding]]:
    """Return what was recorded of the state after the request, and of the present one where that says something."""
    found = []
    for state in dict.fromkeys((case.after, case.now)):
        for kind, values in read_findings(model, state).items():
            finding = finding_of(values, f"the recorded {kind} of the state {state[:16]}…")
            if case.misfit(finding) is None:
                found.append((False, finding))
    return found


def _given(case: Case, findings: Sequence[tuple[str, Any]]) -> list[tuple[bool, Finding]]:
    found = []
    for where, values in findings:
        finding = finding_of(values, where)
        why = case.misfit(finding)
        if why is not None:
            raise RecipeError(f"{where} {why}. Run the command on this model as it is.")
        found.append((False, finding))
    return found


def _model_facts(name: str, folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    base, files = checkpoint.base, checkpoint.files
    digests = {} if files is None else {one: files.entries[one].sha256 for one in sorted(files.entries)}
    return {
        "name": name,
        "commit": folder.name if is_repo_id(name) else None,
        "architecture": checkpoint.config.architecture,
        "kind": checkpoint.task_spec.kind,
        "license": checkpoint.card.license,
        "localization": checkpoint.arguments.localization,
        "num_tasks": len(checkpoint.state.records),
        "has_keyed_ids": checkpoint.has_keyed_ids,
        "state_digest": checkpoint.state_digest,
        "ledger_digest": str(read_ledger(folder)["digest"]),
        "recipe_digest": digest_json(recipe_of(checkpoint.config)),
        "base_model": {
            "name_or_path": base.name_or_path or checkpoint.card.base_model or "",
            "revision": base.revision,
            "digest": base.digest,
            "embedded": base.embedded,
        },
        "files": {**digests, LEDGER_NAME: sha256_file(folder / LEDGER_NAME)},
    }


def _answer_of(asked: ReceivedRequest) -> str | None:
    return None if asked.outcome is None else asked.outcome.receipt


def _request_facts(now: Checkpoint, case: Case, asked: ReceivedRequest | None, *, with_ids: bool) -> dict[str, Any]:
    """Return what the receipt says; of its private part what names nobody, or the ids if they are asked for.

    Of a later request that had nothing left to do, how many of its tasks the receipt is about, and no ids but its own.
    """
    public, salts = {key: value for key, value in case.receipt.items() if key != "private"}, salted_ids(case.receipt)
    if with_ids and salts is None:
        raise RecipeError(
            f"{case.file} has no private part, so it cannot say which tasks it is about. Leave out the ids, or name "
            "the folder with the whole receipts (--receipts)."
        )
    own = set(salts or ()) if asked is None else set(asked.tasks) & set(salts or ())
    num_asked = None if asked is None else {"all": len(asked.tasks), "here": None if salts is None else len(own)}
    return {
        "receipt": {"file": case.file.name, "digest": digest_json(public), "content": public},
        "num_merged_now": None if salts is None else len(now.state.records.keys() & salts.keys()),
        **({"ids": sorted(own)} if with_ids else {}),
        **({} if asked is None else {"asked": asked.name, "num_asked": num_asked}),
    }


def _receipt_facts(path: Path, receipt: Mapping[str, Any]) -> dict[str, Any]:
    # Not what the request is called: that may name another owner.
    keys = ("time", "request", "num_tasks", "digests")
    return {"file": path.name, "num_named": len(receipt["tasks"]), **{key: receipt[key] for key in keys}}


def _signature_facts(folder: Path, statements: Statements, case: Case, trusted: TrustedModel | None) -> dict[str, Any]:
    core = digest_json(core_of(case.receipt))
    links = [link for link in statements.links.values() if link.is_request and link.core == core]
    signers = sorted({key_id for link in links for key_id, _ in link.envelope.signatures})
    return {
        "is_model_signed": signature_of(folder) is not None,
        "statements": sorted(link.file_name for link in links),
        "signed_by": signers,
        "key_id": None if trusted is None else trusted.key_id,
    }
