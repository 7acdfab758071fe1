"""A command does each thing once: it locks, reads, encodes and hashes nothing a second time on its way."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from hf_clamu import ClamuModel, WeightsChangedError
from hf_clamu.checkpoint.layout import DELTA_NAME

# Smaller tensors, and those that occur twice, cannot be told apart by their digests.
LEAST_BYTES = 256
BASE_NAME = "base_model/model.safetensors"
_RECORDERS = []


def _on_event(event, args):
    if event == "open" and isinstance(args[0], str | Path):
        for opened in _RECORDERS:
            opened[str(args[0])] += 1


sys.addaudithook(_on_event)


@pytest.fixture
def opened():
    """Counts how often the process opens each file."""
    count = Counter()
    _RECORDERS.append(count)
    yield count
    _RECORDERS.remove(count)


@pytest.fixture
def tokenised(monkeypatch):
    """Counts how often each text goes through a tokenizer."""
    count, real = Counter(), transformers.PreTrainedTokenizerBase.__call__

    def counted(self, text=None, *args, **options):
        count[str(text)] += 1
        return real(self, text, *args, **options)

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "__call__", counted)
    return count


def _digests(path, real=hashlib.sha256):
    """Return the SHA-256 of the values of the large tensors of a file, by their names."""
    found = {
        name: real(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in load_file(path).items()
        if tensor.nbytes >= LEAST_BYTES
    }
    times = Counter(found.values())
    assert any(times[digest] == 1 for digest in found.values())
    return {name: digest for name, digest in found.items() if times[digest] == 1}


def _named(count, end):
    """Return how often files whose paths end so were opened, of those that were."""
    return [number for path, number in sorted(count.items()) if path.endswith(end)]


@pytest.mark.parametrize("arguments", [(), ("--output", "copy")], ids=["in place", "copy"])
def test_a_request_goes_straight_down(clamu, work, opened, hashed, arguments):
    assert clamu("unmerge", "text", "user_0").code == 0
    old = _digests(work / "text" / DELTA_NAME)
    files = [hashlib.sha256((work / "text" / name).read_bytes()).hexdigest() for name in (DELTA_NAME, BASE_NAME)]
    opened.clear()
    hashed.clear()
    assert clamu("unmerge", "text", "user_1", *arguments).code == 0
    assert sum(_named(opened, ".lock")) == 1
    # Data, and the receipts of earlier requests.
    assert _named(opened, "/rows.jsonl") == [1]
    assert [number for path, number in opened.items() if "/receipts/" in path and path.endswith("json")] == [1]
    # When it is loaded, and whether it is still the same: before anything is written, and when the new one comes.
    assert max(_named(opened, "text/ledger.json")) <= 3
    # For the kernels, before torch is there; for its content, for its digest, and by transformers for the processor.
    assert max(_named(opened, "text/config.json")) <= 4
    # The base model as it loads from the written copy, which is another file of the same bytes; the new delta.
    base = _digests(work / "text" / BASE_NAME)
    assert {name: hashed[digest] for name, digest in base.items()} == dict.fromkeys(base, 1)
    new = _digests(work / (arguments[1] if arguments else "text") / DELTA_NAME)
    assert {name: hashed[digest] for name, digest in old.items()} == dict.fromkeys(old, 0)
    assert {name: hashed[digest] for name, digest in new.items()} == dict.fromkeys(new, 1)
    # What is loaded, by its files; the base model's are written again.
    assert [hashed[digest] for digest in files] == [1, 2]


def test_an_output_with_another_model_is_refused_before_the_source_is_read(clamu, work, opened):
    def tried():
        opened.clear()
        assert "lm" in clamu("unmerge", "text", "user_1", "--output", "lm").error
        return [sum(_named(opened, f"{name}/ledger.json")) for name in ("text", "lm")]

    assert tried() == [0, 0]
    # Receipts could say that it is the result of an earlier run.
    assert clamu("unmerge", "text", "user_0").code == 0
    assert tried() == [0, 1]


def test_a_live_model_is_proven_again_for_a_request(work):
    model = ClamuModel.from_pretrained(work / "text")
    before = model.state_digest()
    name = next(iter(model.merged.state.delta))
    # It leaves no trace in the version of the parameter, so only the digest tells.
    dict(model.named_parameters())[name].data.add_(1.0)
    with pytest.raises(WeightsChangedError, match="no longer has the base weights"):
        model.unmerge_task("user_1")
    assert model.state_digest() == before


@pytest.mark.parametrize(
    ("command", "users"),
    [
        ("train text.yaml --output new", "0123"),
        ("unmerge text user_1", "0123"),
        ("update text --new new.jsonl --data rows.jsonl", "01234"),
        ("evaluate text", "0123"),
        ("evaluate text --split all --serving global", "0123"),
        ("verify text", "0123"),
        ("plan text.yaml", "0123"),
    ],
)
def test_a_command_encodes_each_row_once(command, users, clamu, work, tokenised):
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text().splitlines()]
    changed = [{**row, "text": row["text"].replace("of 3", "of 4")} for row in rows if row["user"] == "user_3"]
    (work / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    tokenised.clear()
    assert clamu(*command.split()).code == 0
    texts = {row["text"] for row in (*rows, *changed) if row["text"][-1] in users}
    assert {text: tokenised[text] for text in texts} == dict.fromkeys(texts, 1)
