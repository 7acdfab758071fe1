"""Adding to a receipt what became known later.

Its file is named by its content, so the receipt with more in it is another file, and the old one is deleted. A marker
beside them says so from before the new file is there until the old one is gone: whenever a process dies, readers take
one of them, and the next process that changes something deletes the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_clamu.operations.lifecycle.receipts import (
    amended,
    amending_marker,
    amendments,
    listed,
    read_receipt,
    receipt_path,
    write_receipt,
)
from hf_clamu.storage import write_atomically
from hf_clamu.storage.durable import sync_folder

__all__ = ["amend_receipt", "finish_amendments"]


def amend_receipt(folder: Path | None, receipt: dict[str, Any], **facts: Any) -> None:
    """Add facts to a receipt, and to its file.

    Args:
        folder (`Path`, *optional*): where its file is; `None` if it has none.
        receipt (*dict*): changed in place.
        facts (*JSON-able*): by key.
    """
    old = None if folder is None else receipt_path(folder, receipt)
    receipt.update(facts)
    if folder is None or old is None:
        return
    new = receipt_path(folder, receipt)
    if new != old and old.exists():
        write_atomically(amending_marker(old, new), b"")
    write_receipt(folder, receipt)
    finish_amendments(folder)


def finish_amendments(folder: Path) -> None:
    """Delete the receipts in whose place others came, whichever process amended them.

    Args:
        folder (`Path`): of receipts; there may be none.

    Raises:
        OSError: if one cannot be deleted; then readers go on passing it over.
    """
    names = listed(folder)
    found = amendments(names)
    if not found:
        return
    for name in amended(names, lambda name: read_receipt(folder / name)):
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)  # before the markers go
    for marker, old, _ in found:
        if not (folder / old).exists():
            (folder / marker).unlink(missing_ok=True)
