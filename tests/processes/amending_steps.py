"""Adds a report on an erased history to the receipt of a request: `amending_steps RECEIPTS ID`."""

from __future__ import annotations

import sys
from pathlib import Path

from hf_clamu.operations.lifecycle.amending import amend_receipt
from hf_clamu.operations.lifecycle.receipts import read_receipts

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (receipt,) = (one for one in read_receipts(folder).values() if one.get("id") == sys.argv[2])
    erasure = {**receipt.get("erasure", {"num_gone": 0}), "still_reachable": [], "steps_failed": []}
    amend_receipt(folder, receipt, erasure={**erasure, "num_gone": erasure["num_gone"] + 1})
