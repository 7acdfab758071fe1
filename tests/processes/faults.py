"""`clamu` in a process of a launcher, where process 1 fails as FAULT says when it finetunes its first task."""

from __future__ import annotations

import os
import signal
import sys

from hf_clamu import cli
from hf_clamu.errors import TaskDataError
from hf_clamu.training import TaskTrainer

_finetune = TaskTrainer.finetune


def _failing(self, task_id):
    if os.environ["RANK"] == "1":
        if os.environ["FAULT"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise TaskDataError(f"Task {task_id!r} is not to be had.")
    return _finetune(self, task_id)


if __name__ == "__main__":
    TaskTrainer.finetune = _failing
    sys.exit(cli.main())
