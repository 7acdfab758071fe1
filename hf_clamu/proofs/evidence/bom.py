"""The model as a CycloneDX bill of materials for machine learning."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from hf_clamu.errors import RecipeError
from hf_clamu.exact import digest_json
from hf_clamu.proofs.evidence.not_shown import is_rebuilt

__all__ = ["evidence_bom"]

# Names of serial numbers: the same model after the same request has the same one.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://hf_clamu/evidence/bom")


def evidence_bom(values: Mapping[str, Any]) -> str:
    """Return a CycloneDX 1.6 ML-BOM in JSON; the same values give the same bytes.

    1.6 is the newest version that Dependency-Track and the tools of OWASP read; nothing here needs 1.7.

    Args:
        values (*mapping*): of the document, see `collect_evidence`.

    Raises:
        RecipeError: if cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as error:
        raise RecipeError("A CycloneDX document needs cyclonedx-python-lib: pip install 'hf-clamu[desk]'.") from error
    receipt = values["receipt"]["content"]
    component = _model(values)
    stable = {key: value for key, value in values.items() if key not in ("checked", "findings")}
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, digest_json({**stable, "rebuilt": is_rebuilt(values)})))
    bom.metadata.timestamp = datetime.datetime.fromisoformat(receipt["time"])
    bom.metadata.component = component
    bom.metadata.tools.components.add(_program(values["hf_clamu"]))
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    return json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _model(values: Mapping[str, Any]) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    model = values["model"]
    files = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        )
        for name, sha256 in model["files"].items()
    ]
    return Component(
        name=model["name"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        version=model["commit"] or model["state_digest"],
        description="A model merged from finetuned tasks, from which tasks can be removed exactly.",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model["state_digest"])],
        licenses=_licences(model["license"]),
        pedigree=Pedigree(ancestors=[_base(model["base_model"])]),
        components=files,
        properties=[Property(name=f"hf_clamu:{name}", value=value) for name, value in _properties(values)],
    )


def _base(base: Mapping[str, Any]) -> Any:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, revision = base["name_or_path"] or "base_model", base["revision"]
    owner, _, short = name.rpartition("/")
    purl = PackageURL("huggingface", owner or None, short, revision) if revision else None
    return Component(
        name=short,
        group=owner or None,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base-model",
        version=revision,
        purl=purl,
        properties=[Property(name="hf_clamu:weights_digest", value=base["digest"])],
    )


def _licences(name: str | None) -> list[Any]:
    """Return a licence by its SPDX id if it is one, otherwise by its name; the Hub writes ids in small letters."""
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    if name is None:
        return []
    known = fixup_id(name)
    return [DisjunctiveLicense(id=known) if known else DisjunctiveLicense(name=name)]


def _program(version: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name="hf-clamu", version=version, type=ComponentType.APPLICATION, bom_ref="hf-clamu")


def _properties(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model, receipt = values["model"], values["receipt"]["content"]
    yield "architecture", model["architecture"]
    yield "kind", model["kind"]
    yield "num_tasks", str(model["num_tasks"])
    yield "state_digest", model["state_digest"]
    yield "ledger_digest", model["ledger_digest"]
    yield "recipe_digest", model["recipe_digest"]
    yield "request:kind", receipt["request"]
    yield "request:time", receipt["time"]
    yield "request:num_tasks", str(len(receipt["tasks"]))
    yield "request:receipt", values["receipt"]["file"]
    yield "request:receipt_digest", values["receipt"]["digest"]
    yield "request:state_before", receipt["digests"]["before"]
    yield "request:state_after", receipt["digests"]["after"]
    yield "request:num_later", str(len(values["later"]))
    yield "verified:rebuild", {True: "identical", False: "different", None: "not checked"}[is_rebuilt(values)]
    audits = [one["result"] for one in values["findings"] if one["kind"] == "audit"]
    for audit in audits:
        yield f"verified:audit_of_{audit['of']}", audit["verdict"]
