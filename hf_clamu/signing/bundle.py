"""OpenSSF Model Signing: one file that signs the name and the SHA-256 of every file of a folder.

It is a Sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement, which `model_signing verify key` of
the OpenSSF reads where the key is on an elliptic curve of NIST; its `key` knows no Ed25519.

Source: https://github.com/sigstore/model-transparency, predicate `https://model_signing/signature/v1.0`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_clamu.errors import RecipeError, SignatureError
from hf_clamu.exact import canonical_json, sha256_file, sha256_files
from hf_clamu.signing.envelope import Envelope
from hf_clamu.signing.keys import PublicKey, SigningKey
from hf_clamu.signing.statement import Statement
from hf_clamu.storage import read_json

__all__ = ["SIGNATURE_NAME", "SignedFolder", "checked_folder", "claimed_folder", "folder_bundle", "require_files"]

# Of a signature inside the folder that it signs, such as a repository on the Hub.
SIGNATURE_NAME = "model.sig"
_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# What clients of Git and of the Hub put into a folder, and the signature itself.
_IGNORED = (".cache", ".git", ".gitattributes", ".github", ".gitignore", SIGNATURE_NAME)
_MOST_BYTES = 1 << 28
_AGAIN = "Take an undamaged copy, or sign it again if the change is yours."


@dataclass(frozen=True, kw_only=True)
class SignedFolder:
    """What a signature says of a folder.

    Args:
        name (`str`): what the folder was called then.
        files (*mapping* of `str` to `str`): SHA-256 of each file, by its name inside.
        ignored (*tuple* of `str`): names inside that it says nothing of.
        notes (*mapping*): what is signed besides, by who wrote it.
        key_id (`str`): of the key that is said to have signed.
        key (`PublicKey`, *optional*): the key that signed, once that was checked.
    """

    name: str
    files: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: Mapping[str, Any]
    key_id: str
    key: PublicKey | None = None


def folder_bundle(
    folder: Path, key: SigningKey, *, name: str | None = None, notes: Mapping[str, Any] | None = None
) -> bytes:
    """Return the signature of a folder as it is now, which is written to a file.

    Args:
        folder (`Path`): what is signed.
        key (`SigningKey`): that signs.
        name (`str`, *optional*): what it is called; by default as the folder.
        notes (*mapping*, *optional*): what is signed besides, by who writes it. Stock readers pass over it.

    Raises:
        RecipeError: if the folder has no file, or something that is no plain file.
        OSError: if a file cannot be read.
    """
    names = _files(folder, _IGNORED, may_link=False)
    if not names:
        raise RecipeError(f"{folder} has no file that could be signed.")
    digests = sha256_files(folder / one for one in names)
    resources = [
        {"name": one, "algorithm": "sha256", "digest": digest} for one, digest in zip(names, digests, strict=True)
    ]
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": list(_IGNORED),
    }
    statement = Statement(
        name=name or folder.resolve().name,
        sha256=_root(digests),
        predicate_type=_PREDICATE_TYPE,
        predicate={**(notes or {}), "serialization": serialization, "resources": resources},
    )
    # Without the id of the key beside the signature, as stock signers write it: the hint says it.
    envelope = statement.envelope().signed(key, names_key=False)
    return canonical_json(
        {
            "mediaType": _BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key.public.key_id}, "tlogEntries": []},
            "dsseEnvelope": envelope.to_dict(),
        }
    )


def claimed_folder(path: Path, keys: Iterable[PublicKey] = ()) -> SignedFolder:
    """Return what a signature says of a folder, which is not looked at.

    Args:
        path (`Path`): file of the bundle.
        keys (*iterable* of `PublicKey`): that may have signed.

    Returns:
        `SignedFolder`: its `key` is the one of `keys` that signed; `None` if it is none of them, so that anybody may
        have written what it says.

    Raises:
        SignatureError: if it is no signature that can be read here.
    """
    claimed, envelope = _parsed(path)
    return replace(claimed, key=envelope.signer(keys))


def checked_folder(
    folder: Path,
    path: Path,
    keys: Iterable[PublicKey],
    *,
    digest: Callable[[Path], str] = sha256_file,
) -> SignedFolder:
    """Compare a folder, every file of it, with a signature.

    Args:
        folder (`Path`): what was signed. Its files may be links, as in a cache of the Hub.
        path (`Path`): file of the bundle.
        keys (*iterable* of `PublicKey`): that are trusted.
        digest (*callable*): gives the SHA-256 of a file.

    Returns:
        `SignedFolder`: with the key that signed.

    Raises:
        SignatureError: if another key signed it, or a file is missing, changed or added.
        OSError: if a file cannot be read.
    """
    keys = tuple(keys)
    claimed = claimed_folder(path, keys)
    if claimed.key is None:
        trusted = ", ".join(f"{one.key_id[:16]}…" for one in keys)
        reason = (
            f"it names the key {claimed.key_id[:16]}…"
            if claimed.key_id not in {one.key_id for one in keys}
            else "it was edited"
        )
        raise SignatureError(
            f"{path} is not signed with a trusted key: expected {trusted}, {reason}. Do not use this copy unless you "
            "trust whoever signed it; then give their public key."
        )
    require_files(folder, claimed, path, digest=digest)
    return claimed


def require_files(
    folder: Path, claimed: SignedFolder, path: Path, *, digest: Callable[[Path], str] = sha256_file
) -> None:
    """Compare a folder, every file of it, with what a signature says, whoever made it.

    Args:
        folder (`Path`): the folder.
        claimed (`SignedFolder`): what the signature says.
        path (`Path`): its file, for the message.
        digest (*callable*): gives the SHA-256 of a file.

    Raises:
        SignatureError: if a file is missing, changed or added.
        OSError: if a file cannot be read.
    """
    found = _files(folder, claimed.ignored, may_link=True)
    for name in sorted(claimed.files.keys() - set(found)):
        raise SignatureError(f"{folder / name} is missing: {path.name} signs it. {_AGAIN}")
    for name in found:
        if name not in claimed.files:
            raise SignatureError(
                f"{folder / name} is not signed: {path.name} does not list it. Move it out of the folder, or sign it "
                "again if it belongs there."
            )
        if (actual := digest(folder / name)) != claimed.files[name]:
            raise SignatureError(
                f"{folder / name} was changed after it was signed: its SHA-256 is {actual[:16]}…, {path.name} says "
                f"{claimed.files[name][:16]}…. {_AGAIN}"
            )


def _parsed(path: Path) -> tuple[SignedFolder, Envelope]:
    try:
        value = read_json(path, _MOST_BYTES, may_link=True)
        if not isinstance(value, dict) or value.get("mediaType") != _BUNDLE_TYPE:
            raise ValueError(f"its media type is not {_BUNDLE_TYPE}")
        envelope = Envelope.from_dict(value.get("dsseEnvelope"))
        return _signed_folder(Statement.of(envelope), _hint(value)), envelope
    except ValueError as error:
        raise SignatureError(
            f"{path} is no signature of OpenSSF Model Signing that can be read here: {error}. Take an undamaged copy, "
            "or sign the model again."
        ) from error


def _hint(bundle: Mapping[str, Any]) -> str:
    material = bundle.get("verificationMaterial")
    key = material.get("publicKey") if isinstance(material, dict) else None
    hint = key.get("hint") if isinstance(key, dict) else None
    if not isinstance(hint, str):
        raise ValueError("it names no public key; certificates and keyless signatures are not read here")
    return hint


def _signed_folder(statement: Statement, key_id: str) -> SignedFolder:
    if statement.predicate_type != _PREDICATE_TYPE:
        raise ValueError(f"it says {statement.predicate_type!r}, expected {_PREDICATE_TYPE!r}")
    predicate = dict(statement.predicate)
    resources, how = predicate.pop("resources", None), predicate.pop("serialization", None)
    if not isinstance(how, dict) or how.get("method") != "files" or how.get("hash_type") != "sha256":
        raise ValueError("it does not sign whole files by SHA-256")
    ignored = how.get("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(one, str) and one.strip("./") for one in ignored):
        raise ValueError("its ignored paths are no list of names")
    if not isinstance(resources, list):
        raise ValueError("it lists no files")
    files: dict[str, str] = {}
    for entry in resources:
        keys = ("name", "algorithm", "digest")
        name, algorithm, digest = (entry.get(key) if isinstance(entry, dict) else None for key in keys)
        if not isinstance(name, str) or algorithm != "sha256" or not isinstance(digest, str) or name in files:
            raise ValueError("it lists a file twice, or without its SHA-256")
        files[name] = digest
    if _root(files.values()) != statement.sha256:
        raise ValueError("the digest of its list is another one than it says")
    paths = tuple(one.rstrip("/") for one in ignored)
    return SignedFolder(name=statement.name, files=files, ignored=paths, notes=predicate, key_id=key_id)


def _root(digests: Iterable[str]) -> str:
    """Return the digest of a folder: of the digests of its files, in their order."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _files(folder: Path, ignored: Iterable[str], *, may_link: bool) -> list[str]:
    """Return the names of the files below a folder, in the order of their parts.

    Args:
        folder (`Path`): the folder.
        ignored (*iterable* of `str`): names inside of files and folders that do not count.
        may_link (`bool`): files may be links to other places.

    Raises:
        RecipeError, SignatureError: if there is something that is no file, when signing and when checking.
    """

    def fail(error: OSError) -> None:
        raise error

    passed_over, found = {*ignored}, []
    for walked, folders, names in os.walk(folder, onerror=fail):
        inside = PurePosixPath(Path(walked).relative_to(folder).as_posix())
        folders[:] = [one for one in folders if str(inside / one) not in passed_over]
        links = [one for one in folders if (Path(walked) / one).is_symlink()]
        for one in (*names, *links):
            name = inside / one
            if str(name) in passed_over:
                continue
            mode = (Path(walked) / one).lstat().st_mode
            if stat.S_ISLNK(mode) and may_link and one not in links and (Path(walked) / one).is_file():
                mode = stat.S_IFREG
            if not stat.S_ISREG(mode) or not str(name).isprintable():
                raise (SignatureError if may_link else RecipeError)(
                    f"{str(folder / name)!r} is a link, no plain file, or has a name that cannot be printed, so no "
                    "signature covers it. Move it out of the folder, or put a copy of the file there."
                )
            found.append(name)
    return [str(name) for name in sorted(found)]
