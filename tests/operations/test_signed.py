"""Signed models and receipts: everything that does not fit what was signed is refused.

One tiny model is built, forgets, gets its task back and forgets again, so that states repeat; copies of it are
changed.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from hf_clamu import ClamuModel, SignatureError
from hf_clamu.checkpoint import layout
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.exact import canonical_json
from hf_clamu.operations.lifecycle.amending import amend_receipt
from hf_clamu.operations.lifecycle.receipts import (
    make_receipt,
    read_receipts,
    receipt_path,
    write_receipt,
)
from hf_clamu.operations.signed.chain import Statements
from hf_clamu.operations.signed.checking import require_trusted
from hf_clamu.operations.signed.links import Link
from hf_clamu.operations.signed.signing import sign_model, signature_beside
from hf_clamu.signing import SIGNATURE_NAME, folder_bundle, load_public_key, load_signing_key


@pytest.fixture(scope="module")
def history(tiny, keys, tmp_path_factory):
    """`m`, its receipts and its signature, after requests: 1 forgotten, added again, forgotten; 2 and 3 at once."""
    work = tmp_path_factory.mktemp("history")
    folder, receipts = work / "m", work / "receipts"
    model, tasks = tiny.train("text", clustering="random", localization="global"), tiny.tasks("text")
    model.save_pretrained(folder)
    key = load_signing_key(keys / "p256.pem")
    sign_model(folder, model.state_digest(), key, receipts=receipts)
    for step in range(4):
        if step == 1:
            model.add_task(tasks.select(["user_1"]), receipt_dir=receipts)
        elif step == 3:
            model.unmerge_requests({"a": "user_2", "b": "user_3"}, data=tasks, receipt_dir=receipts)
        else:
            model.unmerge_task("user_1", data=tasks, receipt_dir=receipts)
        model.save_pretrained(folder)
        if step != 2:  # that is signed with the next one
            sign_model(folder, model.state_digest(), key, receipts=receipts)
    amend_receipt(receipts, model.receipts[-1], erasure={"still_reachable": []})
    sign_model(folder, model.state_digest(), key, receipts=receipts)
    return work


@pytest.fixture
def work(history, tmp_path):
    shutil.copytree(history, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def key(keys):
    return load_signing_key(keys / "p256.pem")


def _check(work, keys, *, required=True, folder="m"):
    trusted = [load_public_key(keys / "p256.pub")]
    model = require_trusted(work / folder, trusted)
    checkpoint = read_checkpoint(work / folder)
    model.require_state(checkpoint)
    return model.check_receipts(checkpoint.state_digest, work / "receipts", trusted, required=required)


def _sign(work, key, **options):
    state = read_checkpoint(work / "m").state_digest
    return sign_model(work / "m", state, key, receipts=work / "receipts", **options)


def test_what_was_signed_is_accepted_and_its_chain_is_whole(work, keys):
    found = _check(work, keys)
    assert [link.receipt["request"] for link in found if link.is_request] == ["unmerge", "add", "unmerge"] + [
        "unmerge"
    ] * 2
    assert [link.is_request for link in found] == [True] * 5 + [False]
    assert [link.previous for link in found] == [None, *(link.digest for link in found[:-1])]
    assert found[0].before == found[1].after  # states repeat
    assert found[-1].facts == {"erasure": {"still_reachable": []}}
    trusted = [keys / "other.pub", keys / "p256.pub"]
    assert AutoModelForSequenceClassification.from_pretrained(work / "m", trusted_keys=trusted).tasks
    loaded = ClamuModel.from_pretrained(work / "m", trusted_keys=trusted)
    assert loaded.tasks == ("user_0", "user_4")


def test_signing_changes_no_byte_of_the_model_and_twice_is_once(work, tiny, keys):
    before = tiny.digests(work)
    _sign(work, load_signing_key(keys / "p256.pem"))
    after = tiny.digests(work)
    assert {name for name in after if before.get(name) != after[name]} == {"m.sig"}  # ECDSA draws anew
    _check(work, keys)


def test_nothing_private_is_signed(work):
    for path in (work / "receipts").glob("*.dsse"):
        link = Link.from_file(path)
        assert "private" not in link.envelope.payload.decode()
    salts = {salt for one in read_receipts(work / "receipts").values() for salt in one["private"]["salts"].values()}
    assert len(salts) == 5
    text = b"".join(path.read_bytes() for path in (work / "receipts").glob("*.dsse")).decode()
    assert [salt for salt in salts if salt in text] == []


def test_a_thousand_changes_of_one_byte_are_refused(work, keys):
    trusted, draw = [load_public_key(keys / "p256.pub")], random.Random(0)
    files = {path: path.read_bytes() for path in sorted((work / "m").rglob("*")) if path.is_file()}
    for number in range(1000):
        path = draw.choice(list(files))
        data = bytearray(files[path])
        position = draw.randrange(len(data))
        if number % 4 < 2:
            data[position] ^= draw.randrange(1, 256)
        elif number % 4 == 2:
            data.append(draw.randrange(256))
        else:
            data.pop()
        path.write_bytes(data)
        with pytest.raises(SignatureError, match="was changed after it was signed"):
            require_trusted(work / "m", trusted)
        path.write_bytes(files[path])
    require_trusted(work / "m", trusted)


@pytest.mark.parametrize("name", ["delta.safetensors", "ledger.json", "README.md", "tokenizer.json"])
def test_a_model_with_a_missing_file_is_not_loaded(work, keys, name):
    (work / "m" / name).unlink()
    with pytest.raises(SignatureError, match="is missing"):
        ClamuModel.from_pretrained(work / "m", trusted_keys=keys / "p256.pub")


def test_a_resealed_ledger_is_not_loaded(work, keys, tiny):
    tiny.reseal(work / "m", source={"files": ["other.jsonl"]})
    with pytest.raises(SignatureError, match=r"ledger\.json was changed"):
        ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])
    ClamuModel.from_pretrained(work / "m")  # whose own digests fit


def test_other_keys_and_unsigned_models_are_not_loaded(work, keys):
    with pytest.raises(SignatureError, match="is not signed with a trusted key"):
        ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "other.pub"])
    signature_beside(work / "m").unlink()
    with pytest.raises(SignatureError, match="is not signed: there is no"):
        ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])
    assert ClamuModel.from_pretrained(work / "m").tasks


def test_a_signature_inside_the_folder_counts_as_on_the_hub(work, keys):
    shutil.move(signature_beside(work / "m"), work / "m/model.sig")
    ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])
    _check(work, keys)
    model = ClamuModel.from_pretrained(work / "m")
    model.save_pretrained(work / "m")
    assert not (work / "m/model.sig").exists()  # it goes when a model is saved there


def test_a_model_travels_without_its_receipts(work, keys):
    shutil.rmtree(work / "receipts")
    assert _check(work, keys, required=False) is None
    ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])
    with pytest.raises(SignatureError, match="A receipt is missing"):
        _check(work, keys)


def _change(folder: Path, draw: random.Random, number: int) -> str:
    """Change the receipts of a folder at random; return what was done."""
    statements, receipts = sorted(folder.glob("*.dsse")), sorted(folder.glob("*.json"))
    files = draw.choice([statements, receipts])
    path, other = draw.sample(files, 2)
    kind = ("edit", "drop", "swap", "replay", "reseal")[number % 5]
    if kind == "edit":
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        if path.suffix == ".json" and _shown(data) == _shown(path.read_bytes()):
            data = bytearray(b"[]")  # nothing but the owner's salt of the effect was hit, which nothing proves
        path.write_bytes(data)
    elif kind == "drop":
        path.unlink()
    elif kind == "swap":
        path.write_bytes(other.read_bytes())
    elif kind == "replay":
        path.with_name(path.name.replace(path.name.split("-")[0], "20990101T000000")).write_bytes(path.read_bytes())
    else:  # as somebody who knows how names are made
        receipt = json.loads(receipts[0].read_bytes() if path.suffix == ".dsse" else path.read_bytes())
        receipt["seconds"] = {"total": draw.random()}
        old = path if path.suffix == ".json" else receipts[0]
        old.unlink()
        write_receipt(folder, receipt)
    return kind


def _shown(data):
    try:
        value = json.loads(data)
        del value["private"]["effect_salt"]
    except (KeyError, TypeError, ValueError):
        return None
    return value


def test_two_hundred_edited_swapped_dropped_and_replayed_receipts_are_refused(history, work, keys):
    draw = random.Random(3)
    trusted = [load_public_key(keys / "p256.pub")]
    model, state = require_trusted(work / "m", trusted), read_checkpoint(work / "m").state_digest
    count = dict.fromkeys(("edit", "drop", "swap", "replay", "reseal"), 0)
    for number in range(200):
        kind = _change(work / "receipts", draw, number)
        with pytest.raises(SignatureError):
            model.check_receipts(state, work / "receipts", trusted, required=True)
        count[kind] += 1
        shutil.rmtree(work / "receipts")
        shutil.copytree(history / "receipts", work / "receipts")
    assert set(count.values()) == {40}
    assert model.check_receipts(state, work / "receipts", trusted, required=True)


@pytest.mark.parametrize("number", range(6))
def test_each_statement_that_is_dropped_is_missed(work, keys, number):
    _check(work, keys)[number].write(work / "receipts").unlink()
    with pytest.raises(SignatureError, match="A receipt is missing"):
        _check(work, keys)
    if number < 5:
        with pytest.raises(SignatureError, match="A receipt is missing"):
            ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])


def test_the_statements_alone_are_enough_for_an_auditor(work, keys):
    for path in (work / "receipts").glob("*.json"):
        path.unlink()
    assert len(_check(work, keys)) == 6


def test_a_receipt_that_says_less_again_is_refused(work, keys):
    path, receipt = next((path, one) for path, one in read_receipts(work / "receipts").items() if "erasure" in one)
    older = {name: value for name, value in receipt.items() if name != "erasure"}
    write_receipt(work / "receipts", older)
    with pytest.raises(SignatureError, match="an older one was put back"):
        _check(work, keys)
    path.unlink()
    with pytest.raises(SignatureError, match="says of archive, snapshot or erasure"):
        _check(work, keys)


def test_what_was_amended_since_is_refused_until_it_is_signed(work, keys, key):
    receipt = dict(next(one for one in read_receipts(work / "receipts").values() if "erasure" in one))
    amend_receipt(work / "receipts", receipt, erasure={"still_reachable": ["url"]})
    with pytest.raises(SignatureError, match="amended since"):
        _check(work, keys)
    _sign(work, key)
    assert _check(work, keys)[-1].facts == {"erasure": {"still_reachable": ["url"]}}
    assert len(_check(work, keys)) == 7


def test_a_receipt_of_an_unsigned_request_is_refused(work, keys, tiny):
    state = read_checkpoint(work / "m").state_digest
    facts = {"digests": {"before": "a" * 64, "after": state}, "environment": None, "how": "added", "num_requests": 1}
    facts |= {"num_tasks": {"before": 1, "after": 2}, "seconds": {}}
    path = write_receipt(work / "receipts", make_receipt("add", ["user_0"], recipe={}, facts=facts))
    with pytest.raises(SignatureError, match="leads to this model and is not signed"):
        _check(work, keys)
    path.unlink()
    facts["digests"] = {"before": "a" * 64, "after": "b" * 64}
    write_receipt(work / "receipts", make_receipt("add", ["user_0"], recipe={}, facts=facts))
    assert _check(work, keys)  # of another model


def test_a_receipt_that_leads_elsewhere_is_refused_though_the_key_signed_it(work, keys, key):
    path = _check(work, keys)
    core = {**path[-2].receipt, "digests": {"before": path[-1].after, "after": "b" * 64}}
    odd = Link.of_request(core, path[-1].digest, keeps_source=False)
    Link.read(odd.envelope.signed(key)).write(work / "receipts")
    notes = {"clamu_receipts": {"state": path[-1].after, "first": path[0].digest, "last": odd.digest, "count": 7}}
    signature_beside(work / "m").write_bytes(folder_bundle(work / "m", key, notes=notes))
    with pytest.raises(SignatureError, match="leads to the state bbbb"):
        _check(work, keys)
    notes["clamu_receipts"]["last"] = path[-1].digest
    signature_beside(work / "m").write_bytes(folder_bundle(work / "m", key, notes=notes))
    with pytest.raises(SignatureError, match="counts 7 statements, and 6 lead"):
        _check(work, keys)
    notes["clamu_receipts"]["state"] = "b" * 64
    signature_beside(work / "m").write_bytes(folder_bundle(work / "m", key, notes=notes))
    with pytest.raises(SignatureError, match="says that it is of the state bbbb"):
        _check(work, keys)
    notes["clamu_receipts"] = {"state": 5}
    signature_beside(work / "m").write_bytes(folder_bundle(work / "m", key, notes=notes))
    with pytest.raises(SignatureError, match="Upgrade hf_clamu"):
        _check(work, keys)


def test_statements_of_another_key_are_refused(work, keys):
    link = _check(work, keys)[2]
    unsigned = Link.of_request(link.receipt, link.previous, keeps_source=False)
    assert unsigned.digest == link.digest
    Link.read(unsigned.envelope.signed(load_signing_key(keys / "other.pem"))).write(work / "receipts")
    with pytest.raises(SignatureError, match="is not signed with a trusted key"):
        _check(work, keys)
    with pytest.raises(SignatureError, match="is not signed with a trusted key"):
        _sign(work, load_signing_key(keys / "p256.pem"))


def test_an_older_model_with_its_own_signature_is_refused_beside_newer_receipts(work, keys, key, tiny):
    shutil.copytree(work / "m", work / "backup")
    shutil.copy(work / "m.sig", work / "backup.sig")
    model = ClamuModel.from_pretrained(work / "m")
    model.unmerge_task("user_4", data=tiny.tasks("text"), receipt_dir=work / "receipts")
    model.save_pretrained(work / "m")
    _sign(work, key)
    _check(work, keys)
    for path in ("m", "m.sig"):
        shutil.rmtree(work / path) if path == "m" else (work / path).unlink()
    shutil.move(work / "backup", work / "m")
    shutil.copy(work / "backup.sig", work / "m.sig")
    with pytest.raises(SignatureError, match="This model is older than its receipts"):
        _check(work, keys)
    with pytest.raises(SignatureError, match="This model is older than its receipts"):
        ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])
    # Another request on the old model does not heal that.
    model = ClamuModel.from_pretrained(work / "m")
    model.unmerge_task("user_0", data=tiny.tasks("text"), receipt_dir=work / "receipts")
    model.save_pretrained(work / "m")
    _sign(work, key)
    with pytest.raises(SignatureError, match="goes on from a state before it"):
        _check(work, keys)


def test_an_older_model_is_refused_beside_receipts_that_follow_deleted_ones(work, keys, key, tiny):
    shutil.copytree(work / "m", work / "backup")
    shutil.copy(work / "m.sig", work / "backup.sig")
    for task_id in ("user_4", "user_0"):
        model = ClamuModel.from_pretrained(work / "m")
        model.unmerge_task(task_id, data=tiny.tasks("text"), receipt_dir=work / "receipts")
        model.save_pretrained(work / "m")
        _sign(work, key)
    own, following = _check(work, keys)[:-2], _check(work, keys)[-2:]
    shutil.rmtree(work / "m")
    shutil.move(work / "backup", work / "m")
    shutil.move(work / "backup.sig", work / "m.sig")
    for path, receipt in read_receipts(work / "receipts").items():
        if receipt["digests"]["before"] == following[0].before:
            path.unlink()
    (work / "receipts" / following[0].file_name).unlink()  # the last one stays, and shows the gap
    with pytest.raises(SignatureError, match=f"{following[1].file_name} follows the statement"):
        _check(work, keys)
    with pytest.raises(SignatureError, match="A receipt is missing"):
        ClamuModel.from_pretrained(work / "m", trusted_keys=[keys / "p256.pub"])
    (work / "receipts" / following[1].file_name).unlink()  # an honest older state is left
    assert _check(work, keys) == own
    # Its own ends are gone, and a newer one names the last.
    following[0].write(work / "receipts")
    for link in (own[0], own[-1]):
        (work / "receipts" / link.file_name).unlink()
    with pytest.raises(SignatureError, match="A receipt is missing"):
        _check(work, keys, required=False)


def test_a_copy_that_is_kept_has_no_newer_receipts(work, keys, key, tiny):
    model = ClamuModel.from_pretrained(work / "m")
    model.unmerge_task("user_4", data=tiny.tasks("text"), receipt_dir=work / "receipts")
    model.save_pretrained(work / "other")
    sign_model(work / "other", model.state_digest(), key, receipts=work / "receipts", keeps_source=True)
    assert len(_check(work, keys)) == 6
    found = _check(work, keys, folder="other")
    assert [link.keeps_source for link in found] == [False] * 6 + [True]
    # The one that was kept goes on.
    model = ClamuModel.from_pretrained(work / "m")
    model.unmerge_task("user_0", data=tiny.tasks("text"), receipt_dir=work / "receipts")
    model.save_pretrained(work / "m")
    _sign(work, key)
    assert len(_check(work, keys)) == len(_check(work, keys, folder="other")) == 7


def test_another_model_at_the_place_is_not_signed_over_the_chain(work, key, tiny):
    model = ClamuModel.from_pretrained(work / "m")
    model.unmerge_task("user_4", data=tiny.tasks("text"))  # without a receipt
    model.save_pretrained(work / "m")
    before = tiny.digests(work)
    with pytest.raises(SignatureError, match="to which no receipt in"):
        _sign(work, key)
    assert tiny.digests(work) == before
    signature_beside(work / "m").unlink()
    assert _sign(work, key).num_statements == 0


def test_signing_needs_the_receipts_that_were_signed(work, key):
    shutil.rmtree(work / "receipts")
    with pytest.raises(SignatureError, match="A receipt is missing"):
        _sign(work, key)


def test_a_statement_that_was_signed_and_not_written_is_written_by_the_next_run(work, key, keys, tiny):
    model = ClamuModel.from_pretrained(work / "m")
    model.unmerge_task("user_4", data=tiny.tasks("text"), receipt_dir=work / "receipts")
    model.save_pretrained(work / "m")
    (lost,) = _sign(work, key).new
    statement = Link.from_file(lost)
    lost.unlink()
    with pytest.raises(SignatureError, match="A receipt is missing"):
        _check(work, keys)
    assert _sign(work, key).new == (lost,)
    assert Link.from_file(lost).digest == statement.digest
    assert len(_check(work, keys)) == 7
    # A receipt that is gone itself does not come back.
    lost.unlink()
    next(
        path for path, one in read_receipts(work / "receipts").items() if one["digests"]["after"] == statement.after
    ).unlink()
    with pytest.raises(SignatureError, match="A receipt is missing"):
        _sign(work, key)


def test_a_lost_signature_is_made_again_from_the_chain(work, key, keys):
    path = _check(work, keys)
    signature_beside(work / "m").unlink()
    assert _sign(work, key).num_statements == 6
    assert _check(work, keys) == path


def test_a_new_key_takes_over_with_the_old_one_known(work, keys):
    new = load_signing_key(keys / "ed25519.pem")
    with pytest.raises(SignatureError, match="was signed with another key"):
        _sign(work, new)
    signed = _sign(work, new, trusted=[load_public_key(keys / "p256.pub")])
    assert (len(signed.new), signed.num_statements) == (6, 6)
    public = [load_public_key(keys / "ed25519.pub")]
    model, state = require_trusted(work / "m", public), read_checkpoint(work / "m").state_digest
    assert len(model.check_receipts(state, work / "receipts", public, required=True)) == 6
    links = Statements.read(work / "receipts").links.values()
    assert all(link.envelope.signer([load_public_key(keys / "p256.pub")]) for link in links)


def test_the_layers_call_the_signature_inside_by_one_name():
    assert layout.SIGNATURE_NAME == SIGNATURE_NAME
    assert layout.is_signature(SIGNATURE_NAME)
    assert layout.is_ours(SIGNATURE_NAME)


def test_unsigned_receipts_stay_possible(work):
    found = read_receipts(work / "receipts")
    assert len(found) == 5
    for path, receipt in found.items():
        assert receipt_path(work / "receipts", receipt) == path
        assert path.read_bytes() == canonical_json(receipt)
    assert ClamuModel.from_pretrained(work / "m").tasks
