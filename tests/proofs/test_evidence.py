"""The evidence of a request: its page survives hostile texts and loads nothing, its bill of materials is valid."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_clamu import CheckpointFormatError, ClamuModel, RecipeError
from hf_clamu.operations.intake.findings import record_finding
from hf_clamu.operations.lifecycle.receipts import commitment, read_receipts, write_receipt
from hf_clamu.proofs.evidence.collecting import collect_evidence
from hf_clamu.proofs.evidence.findings import finding_of
from hf_clamu.proofs.evidence.page import evidence_html
from hf_clamu.proofs.evidence.summary import headline, summary

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "abc\u202egnp.exe\u2066",
    "a\x00b\x1b[31m\r\n",
    "&lt;b&gt; &amp;",
    "x" * 10_000,
)
SCHEMA = Path(__file__).parents[2] / "docs" / "spec" / "schemas"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A model that tasks left one after the other, without snapshot or archive; its receipts; copies before each."""
    folder = tmp_path_factory.mktemp("evidence")
    model = tiny.train("image", linear_digest=True)
    model.save_pretrained(folder / "model")
    for task_id in ("owner_00", "owner_01"):
        shutil.copytree(folder / "model", folder / f"before-{task_id}")
        model.unmerge_task(task_id, receipt_dir=folder / "receipts")
        model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def values(made):
    return collect_evidence(str(made / "model"))


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attrs]

    def handle_data(self, data):
        self.text += data


def _texts(values):
    """Yield the paths of all texts in a JSON value."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, str):
            yield (key,)
        elif isinstance(value, (dict, list)):
            yield from ((key, *path) for path in _texts(value))


# What decides how a page is written, and no text from outside.
_KEPT = {"time", "checked", "request", "kind", "state", "state_digest", "of", "model", "type", "verdict"}


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda text: ascii(text)[:24])
def test_no_text_changes_the_page(values, hostile):
    values["ids"] = ["owner_01"]
    values["receipt"]["content"]["id"] = "letter"
    values["receipt"]["content"]["erasure"] = {
        "repo_id": "org/name",
        "kept_revision": "main",
        "kept_commit": "c" * 40,
        "steps_done": ["probe"],
        "steps_failed": [{"step": "probe", "reason": "no"}],
        "deleted": {"tags": ["v1"]},
        "old_commits": ["d" * 40],
        "num_gone": 3,
        "num_unchanged": 2,
        "still_reachable": [{"url": "https://hub/x", "why": "it is there"}],
        "descendants": [{"repo_id": "other/model", "relation": "finetune"}],
        "not_checked": ["copies"],
        "gone": ["https://hub/y"],
    }
    plain = _Page(evidence_html(values))
    changed = copy.deepcopy(values)
    paths = [path for path in _texts(values) if path[-1] not in _KEPT]
    assert len(paths) > 60
    for *way, last in paths:
        inner = changed
        for key in way:
            inner = inner[key]
        inner[last] = hostile
    changed["receipt"]["content"]["digests"] = values["receipt"]["content"]["digests"]
    text = evidence_html(changed)
    page = _Page(text)
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert len(text) < 200_000


def test_the_page_loads_nothing(values):
    page = _Page(evidence_html(values))
    assert not {"script", "img", "link", "iframe", "object", "form", "base", "audio", "video"} & set(page.tags)
    loads = [value for _, name, value in page.attributes if name in ("src", "href", "action", "srcset", "style")]
    assert loads == ["#not-shown"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    css = re.search(r"<style>(.*?)</style>", evidence_html(values), re.DOTALL)[1]
    assert "url(" not in css
    assert "@import" not in css
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    (policy,) = [value for _, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert page.tags.count("h1") == page.tags.count("main") == 1


def test_the_document_has_its_schema(made, values):
    jsonschema = pytest.importorskip("jsonschema", reason="not installed: pip install -e .[dev]")
    referencing = pytest.importorskip("referencing", reason="comes with jsonschema: pip install -e .[dev]")
    schemas = {name: json.loads((SCHEMA / f"{name}.schema.json").read_bytes()) for name in ("evidence", "receipt")}
    resources = [(one["$id"], referencing.Resource.from_contents(one)) for one in schemas.values()]
    registry = referencing.Registry().with_resources(resources)
    validator = jsonschema.Draft202012Validator(schemas["evidence"], registry=registry)
    first = sorted(read_receipts(made / "receipts").items(), key=lambda item: -item[1]["num_tasks"]["after"])[0][0]
    for found in (
        values,
        collect_evidence(str(made / "model"), before=str(made / "before-owner_01"), with_ids=True),
        collect_evidence(str(made / "model"), receipts=made / "receipts", request=first.name),
    ):
        validator.validate(json.loads(json.dumps(found)))


def test_what_was_not_checked_is_said(made, values):
    told = [(one.verdict, one.text) for one in summary(values)]
    assert headline(values).startswith("The data of 1 task were removed from the model on ")
    assert told[0][0] == "shown"
    assert "nothing hidden is in it" in told[0][1]
    assert told[1] == (
        "open",
        "That the model is byte for byte what a build without them gives was not checked by building it again.",
    )
    assert any("no result of a rebuild is at hand" in text for text in values["not_shown"])
    assert "No rebuild" in _Page(evidence_html(values)).text
    changed = collect_evidence(str(made / "model"), before=str(made / "before-owner_01"))
    assert "exactly what these tasks had added" in summary(changed)[0].text
    assert not any("exactly the vectors" in text for text in changed["not_shown"])


def test_a_rebuild_that_differs_is_no_success(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    shutil.copytree(made / "receipts", tmp_path / "receipts")
    model = ClamuModel.from_pretrained(tmp_path / "model")
    facts = {"model": "model", "state_digest": model.state_digest(), "files_compared": 9, "saved": {}}
    found = {**facts, "identical": False, "differences": ["delta.safetensors"], "additional": []}
    record_finding(str(tmp_path / "model"), model.state_digest(), "verification", found)
    values = collect_evidence(str(tmp_path / "model"))
    assert summary(values)[0].verdict == "failed"
    assert "is not byte for byte" in summary(values)[0].text
    assert "delta.safetensors" in _Page(evidence_html(values)).text
    with pytest.raises(RecipeError, match="identical"):
        finding_of({**found, "identical": True}, "a file")


def test_a_verification_of_other_files_says_nothing_of_these(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    shutil.copytree(made / "receipts", tmp_path / "receipts")
    place = str(tmp_path / "model")
    files = collect_evidence(place)["model"]["files"]
    state = ClamuModel.from_pretrained(place).state_digest()
    facts = {"model": "model", "state_digest": state, "files_compared": len(files), "identical": True}
    facts |= {"differences": [], "additional": []}
    for saved, verdict in ((files, "shown"), ({**files, "config.json": "0" * 64}, "open")):
        record_finding(place, state, "verification", {**facts, "saved": saved})
        told = [one.verdict for one in summary(collect_evidence(place)) if "byte for byte" in one.text]
        assert told == [verdict]
    with pytest.raises(RecipeError, match="files that the model no longer has"):
        collect_evidence(place, findings=[("it", {**facts, "saved": {**files, "config.json": "0" * 64}})])


@pytest.mark.parametrize(
    "erasure",
    [
        {"still_reachable": 5},
        {"still_reachable": ["https://example.org"]},
        {"num_gone": "many"},
        {"gone": 1},
        {"descendants": [{"repo_id": 1}]},
        {"deleted": 3},
        {"repo_id": {"a": 1}},
    ],
)
def test_an_erasure_that_nobody_wrote_is_refused(made, tmp_path, erasure):
    receipt = max(read_receipts(made / "receipts").values(), key=lambda one: -one["num_tasks"]["after"])
    write_receipt(tmp_path, {**receipt, "erasure": erasure})
    with pytest.raises(CheckpointFormatError, match=f"not as clamu erase writes it .{next(iter(erasure))}"):
        collect_evidence(str(made / "model"), receipts=tmp_path)


def test_an_erasure_with_few_entries_shows_nothing(made, tmp_path):
    receipt = max(read_receipts(made / "receipts").values(), key=lambda one: -one["num_tasks"]["after"])
    write_receipt(tmp_path, {**receipt, "erasure": {}})
    values = collect_evidence(str(made / "model"), receipts=tmp_path)
    assert [one.verdict for one in summary(values) if "Hub" in one.text] == ["open"]
    assert "unknown" in evidence_html(values)


def test_an_owner_finds_their_commitment(made, values):
    receipt = max(read_receipts(made / "receipts").values(), key=lambda one: -one["num_tasks"]["after"])
    ((task_id, salt),) = receipt["private"]["salts"].items()
    assert values["receipt"]["content"]["tasks"] == [commitment(salt, task_id)]
    text = evidence_html(values)
    assert commitment(salt, task_id) in text
    assert salt not in text
    assert task_id not in text


def test_a_task_that_is_merged_again_is_named_as_a_failure(made, tiny, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    shutil.copytree(made / "receipts", tmp_path / "receipts")
    model = ClamuModel.from_pretrained(tmp_path / "model")
    tasks = tiny.tasks("image")
    model.add_task(tasks.select("owner_01"), data=tasks, receipt_dir=tmp_path / "receipts")
    model.save_pretrained(tmp_path / "model")
    (before,) = [
        path.name for path, one in read_receipts(tmp_path / "receipts").items() if one["num_tasks"]["after"] == 2
    ]
    values = collect_evidence(str(tmp_path / "model"), request=before)
    assert values["num_merged_now"] == 1
    assert ("failed", "1 of these tasks are in the model again.") in [
        (one.verdict, one.text) for one in summary(values)
    ]
    added = collect_evidence(str(tmp_path / "model"))
    assert headline(added).startswith("The data of 1 task were added to the model on ")
    assert not [one for one in summary(added) if one.verdict == "failed"]


def test_the_bill_of_materials(made, values, monkeypatch):
    pytest.importorskip("cyclonedx", reason="not installed: pip install -e .[desk]")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    from hf_clamu.proofs.evidence.bom import evidence_bom

    values["model"] |= {"license": "apache-2.0", "commit": "c" * 40}
    values["model"]["base_model"] |= {"name_or_path": "org/base", "revision": "d" * 40}
    text = evidence_bom(values)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    later = {**values, "checked": "2027-01-01T00:00:00+00:00"}
    assert evidence_bom(later) == text == evidence_bom(json.loads(json.dumps(values)))
    model = json.loads(text)["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    (base,) = model["pedigree"]["ancestors"]
    assert (base["group"], base["name"], base["version"]) == ("org", "base", "d" * 40)
    assert base["purl"] == f"pkg:huggingface/org/base@{'d' * 40}"
    hashes = {one["name"]: one["hashes"][0]["content"] for one in model["components"]}
    for name, sha256 in hashes.items():
        assert hashlib.sha256((made / "model" / name).read_bytes()).hexdigest() == sha256
    assert "owner_" not in text
    for hostile in HOSTILE:
        values["model"] |= {"name": hostile, "license": hostile}
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(evidence_bom(values)) is None
