"""Envelopes and statements: what is signed, by whom, and what is no envelope."""

from __future__ import annotations

import json

import pytest

from hf_clamu.signing import Envelope, Statement, load_public_key, load_signing_key
from hf_clamu.signing.envelope import pre_authentication

STATEMENT = Statement(name="thing", sha256="ab" * 32, predicate_type="https://example.org/v1", predicate={"a": [1]})


def test_what_is_signed_is_as_the_protocol_has_it():
    # The example of the protocol's own page.
    found = pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_each_of_several_signatures_counts(keys):
    both = STATEMENT.envelope()
    for name in ("p256", "ed25519"):
        both = both.signed(load_signing_key(keys / f"{name}.pem"))
    read = Envelope.from_dict(json.loads(json.dumps(both.to_dict())))
    assert read == both
    assert read.digest == STATEMENT.envelope().digest  # whoever signs
    for name in ("p256", "ed25519"):
        public = load_public_key(keys / f"{name}.pub")
        assert read.signer([load_public_key(keys / "other.pub"), public]) == public
    assert read.signer([load_public_key(keys / "other.pub")]) is None
    assert read.signer([]) is None


def test_a_signature_counts_for_the_key_that_it_names(keys):
    public = load_public_key(keys / "p256.pub")
    ((_, signature),) = STATEMENT.envelope().signed(load_signing_key(keys / "p256.pem")).signatures
    for key_id, counts in ((public.key_id, True), ("", True), ("0" * 64, False)):
        envelope = Envelope(STATEMENT.envelope().payload, ((key_id, signature),))
        assert (envelope.signer([public]) is not None) == counts


def test_the_type_of_the_payload_is_signed(keys):
    envelope = STATEMENT.envelope().signed(load_signing_key(keys / "ed25519.pem"))
    other = Envelope(envelope.payload, envelope.signatures, "application/json")
    public = load_public_key(keys / "ed25519.pub")
    assert envelope.signer([public]) == public
    assert other.signer([public]) is None
    with pytest.raises(ValueError, match="expected 'application/vnd"):
        Statement.of(other)


def test_base64_of_the_other_alphabet_is_read_and_other_spellings_are_not(keys):
    value = Envelope(b"\xfb\xff\xfe", (("", b"\xfb\xff"),)).to_dict()
    assert value["payload"] == "+//+"
    urlsafe = {**value, "payload": "-__-", "signatures": [{"sig": "-_8="}]}
    assert Envelope.from_dict(urlsafe) == Envelope(b"\xfb\xff\xfe", (("", b"\xfb\xff"),))
    for odd in ("+//", "+//+\n", "-_9=", "", 5, None):
        with pytest.raises(ValueError, match="Base64"):
            Envelope.from_dict({**value, "signatures": [{"sig": odd if odd != "" else "?"}]})


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], {}, {"payloadType": "a"}, {"payloadType": "a", "payload": "YQ==", "signatures": None}),
        {"payloadType": "a", "payload": "YQ==", "signatures": [[]]},
        {"payloadType": "a", "payload": "YQ==", "signatures": [{"keyid": 5, "sig": "YQ=="}]},
        {"payloadType": 1, "payload": "YQ==", "signatures": []},
    ],
)
def test_what_is_no_envelope_is_refused(value):
    with pytest.raises(ValueError, match=r"it is|there is|its|is no text"):
        Envelope.from_dict(value)


def test_a_statement_is_the_same_bytes_and_comes_back():
    assert Statement.of(STATEMENT.envelope()) == STATEMENT
    assert json.loads(STATEMENT.envelope().payload)["_type"] == "https://in-toto.io/Statement/v1"


@pytest.mark.parametrize(
    "change",
    [
        *({"_type": "https://in-toto.io/Statement/v0.1"}, {"predicate": []}, {"predicateType": None}, {"subject": []}),
        {"subject": [{"name": "a", "digest": {"sha256": "ab"}}]},
        {"subject": [{"name": "a", "digest": {"sha512": "ab" * 64}}]},
        {"subject": [{"digest": {"sha256": "ab" * 32}}]},
        {"subject": [{"name": "a", "digest": {"sha256": "ab" * 32}}] * 2},
    ],
)
def test_what_is_no_statement_is_refused(change):
    value = json.loads(STATEMENT.envelope().payload)
    with pytest.raises(ValueError, match="statement"):
        Statement.of(Envelope(json.dumps({**value, **change}).encode()))
