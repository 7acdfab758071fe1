"""`clamu` in a process of a launcher, which notes in a file which tasks it finetunes, in their order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hf_clamu import cli
from hf_clamu.training import TaskTrainer

_finetune = TaskTrainer.finetune


def _noting(self, task_id):
    with Path(os.environ["NOTES"], f"{os.environ['RANK']}.txt").open("a", encoding="utf-8") as notes:
        notes.write(f"{task_id}\n")
    return _finetune(self, task_id)


if __name__ == "__main__":
    TaskTrainer.finetune = _noting
    sys.exit(cli.main())
