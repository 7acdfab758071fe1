"""The signed statements in a folder of receipts: each names the one before it, and a model names the last of its own.

Several models may share a folder, and copies of a model share the first part of their chains.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_clamu.errors import SignatureError
from hf_clamu.exact import digest_json
from hf_clamu.operations.lifecycle.receipts import amended, lineage, listed, read_receipt, read_receipts
from hf_clamu.operations.signed.links import ENDING, Link, core_of
from hf_clamu.signing import PublicKey

__all__ = ["NOTE", "Pinned", "Statements", "in_order", "require_signed"]

# What the signature of a model says of its receipts stands under this key.
NOTE = "clamu_receipts"
_RECEIPT_NAME = re.compile(r"\d{8}T\d{6}-[a-z]+-[0-9a-f]{8}\.json")


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """What the signature of a model says of its receipts.

    Args:
        state (`str`): state digest of the model.
        first, last (`str`, *optional*): digests of the first and the last statement; `None` if there is none.
        count (`int`): number of statements.
    """

    state: str
    first: str | None = None
    last: str | None = None
    count: int = 0

    @classmethod
    def of(cls, state: str, path: Sequence[Link]) -> Pinned:
        """Return what is signed of a path of statements."""
        ends = {"first": path[0].digest, "last": path[-1].digest} if path else {}
        return cls(state=state, count=len(path), **ends)

    def to_notes(self) -> dict[str, Any]:
        """Return what goes into a signature."""
        return {NOTE: asdict(self)}

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Pinned | None:
        """Return what a signature says; `None` if it is of a program that knows no receipts.

        Raises:
            SignatureError: if it cannot be understood.
        """
        if NOTE not in notes:
            return None
        value = notes[NOTE]
        text = (str, type(None))
        kinds = {"state": (str,), "first": text, "last": text, "count": (int,)}
        is_known = isinstance(value, dict) and value.keys() == kinds.keys()
        if not is_known or not all(type(value[key]) in kind for key, kind in kinds.items()):
            raise SignatureError("The signature says of receipts what this release does not know. Upgrade hf_clamu.")
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class Statements:
    """What a folder of receipts holds.

    Args:
        folder (`Path`): the folder.
        links (*mapping* of `str` to `Link`): signed statements, by their digests; whose signatures they are was not
            checked.
        receipts (*mapping* of `Path` to *mapping*): receipts, by their files.
        odd (*mapping* of `Path` to `str`): files that are not as they were written, and why.
    """

    folder: Path
    links: Mapping[str, Link]
    receipts: Mapping[Path, Mapping[str, Any]]
    odd: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Statements:
        """Read a folder; there may be none."""
        links, odd = {}, {}
        names = listed(folder)
        receipts = read_receipts(folder)
        replaced = amended(names, lambda name: read_receipt(folder / name))
        for path in (folder / name for name in names if not name.startswith(".")):
            if path.suffix == ENDING:
                try:
                    link = Link.from_file(path)
                    links[link.digest] = link
                except (OSError, ValueError) as error:
                    odd[path] = str(error)
            elif _RECEIPT_NAME.fullmatch(path.name) and path not in receipts and path.name not in replaced:
                odd[path] = "its content does not fit its name, or it lacks a field"
        return cls(folder=folder, links=links, receipts=receipts, odd=odd)

    def require_sound(self) -> None:
        """Refuse files that are not as they were written.

        Raises:
            SignatureError: naming the first.
        """
        for path, reason in self.odd.items():
            raise SignatureError(
                f"{path} is not as it was written ({reason}): it was edited, exchanged, copied or damaged. Bring back "
                "the file as it was, or move it out of the folder if it is no receipt."
            )

    def path_to(self, head: str | None) -> list[Link]:
        """Return the statements that lead to one, the first ones first.

        Raises:
            SignatureError: if one is missing.
        """
        found: list[Link] = []
        while head is not None:
            if head not in self.links:
                by = f"{found[-1].file_name} follows it" if found else "the signature of the model names it"
                raise SignatureError(
                    f"A receipt is missing in {self.folder}: the statement {head[:16]}… ({by}). Bring back its file "
                    f"(…{head[:16]}{ENDING}), or name the folder that has it (--receipts)."
                )
            found.append(self.links[head])
            head = found[-1].previous
        return found[::-1]

    def following(self, digest: str | None) -> list[Link]:
        """Return the statements that name one as the one before them."""
        return [link for link in self.links.values() if link.previous == digest]

    def extended(self, path: Sequence[Link], cores: Collection[str]) -> list[Link]:
        """Return a path with the statements that go on from its end, about certain receipts only.

        Args:
            path (*sequence* of `Link`): the first ones first.
            cores (*collection* of `str`): digests of receipts (`Link.core`).
        """
        found = list(path)
        while found:
            own = {link.core for link in found}
            following = self.following(found[-1].digest)
            allowed = [one for one in following if one.core in (cores if one.is_request else own)]
            if not allowed:
                break
            found.append(allowed[0])
        return found

    def longest_path(self, cores: Collection[str]) -> list[Link]:
        """Return the longest path whose statements are about certain receipts only; empty if there is none."""
        roots = [link for link in self.following(None) if link.core in cores]
        return max((self.extended([root], cores) for root in roots), key=len, default=[])


def in_order(receipts: Mapping[Path, Mapping[str, Any]], state: str, known: Collection[str]) -> list[Path]:
    """Return the receipts that lead to a state and are not known yet, the first ones first.

    Args:
        receipts (*mapping* of `Path` to *mapping*): receipts of any models.
        state (`str`): state digest of a model.
        known (*collection* of `str`): digests of receipts (`Link.core`) that are left out.
    """
    candidates = lineage(receipts, state)  # the last ones first
    left = [path for path, receipt in candidates.items() if digest_json(core_of(receipt)) not in known]
    left.sort(key=lambda path: str(receipts[path]["time"]), reverse=True)
    found: list[Path] = []
    while batch := list(_last_batch(receipts, left, state)):
        found += batch
        left = [path for path in left if path not in batch]
        state = receipts[batch[0]]["digests"]["before"]
    return found[::-1]


def _last_batch(receipts: Mapping[Path, Mapping[str, Any]], left: Sequence[Path], state: str) -> Iterator[Path]:
    """Yield the last receipt that leads to a state, and those that were carried out together with it."""
    leading = [path for path in left if receipts[path]["digests"]["after"] == state]
    if leading:
        digests, count = (receipts[leading[0]][key] for key in ("digests", "num_requests"))
        together = [path for path in leading if receipts[path]["digests"] == digests]
        yield from [path for path in together if receipts[path]["num_requests"] == count][:count]


def require_signed(links: Sequence[Link], keys: Sequence[PublicKey], folder: Path) -> None:
    """Refuse statements that nobody trusted signed.

    Raises:
        SignatureError: naming the first.
    """
    for link in links:
        if link.envelope.signer(keys) is None:
            named = ", ".join(f"{key_id[:16]}…" for key_id, _ in link.envelope.signatures) or "nobody"
            raise SignatureError(
                f"{folder / link.file_name} is not signed with a trusted key: expected "
                f"{', '.join(f'{key.key_id[:16]}…' for key in keys)}, found {named}. Do not rely on this receipt "
                "unless you trust whoever signed it; then give their public key, too."
            )
