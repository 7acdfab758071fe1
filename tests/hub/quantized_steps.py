"""What the test of quantised bases on the Hub lets the client's process do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_TOKEN"] = "hf_owner"
BASE, REPO = "org/base", "org/merged"


def push_base(folder: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo(BASE)
    HfApi().upload_folder(repo_id=BASE, folder_path=folder)


def build(quantization: dict, folder: str, without: str | None = None) -> None:
    """Build on the base model on the Hub, and save."""
    from conftest import Tiny

    from hf_clamu import ClamuTrainer
    from hf_clamu.training import silent_progress

    tasks = Tiny.tasks("lm")
    model = ClamuTrainer(
        BASE,
        tasks if without is None else tasks.without(without),
        Tiny.arguments(),
        processing_class=Tiny.processor("lm"),
        peft_config={"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "down_proj"]},
        quantization_config=quantization,
        progress=silent_progress,
    ).train()
    model.save_pretrained(folder)


def push(folder: str) -> None:
    from hf_clamu import ClamuModel

    ClamuModel.from_pretrained(folder).push_to_hub(REPO)


def forget(task_id: str, folder: str) -> bool:
    """Forget a task of the model on the Hub, push, load again, verify, and save."""
    from conftest import Tiny

    from hf_clamu import ClamuModel

    tasks = Tiny.tasks("lm")
    model = ClamuModel.from_pretrained(REPO)
    model.unmerge_task(task_id, data=tasks)
    model.push_to_hub()
    again = ClamuModel.from_pretrained(REPO, force_download=True)
    again.save_pretrained(folder)
    return bool(again.verify(data=tasks))


def load(folder: str) -> None:
    from hf_clamu import ClamuModel

    ClamuModel.from_pretrained(folder)
