"""A model and requests to try the desk with: handwritten digits of 48 owners, six masks."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

from hf_clamu.checkpoint.layout import LEDGER_NAME
from hf_clamu.errors import RecipeError
from hf_clamu.operations.intake.book import Asked, RequestBook
from hf_clamu.operations.intake.received import today

__all__ = ["prepare_demo"]

# Owner and how many days ago the letter came.
_LETTERS = (("owner_07", 33), ("owner_19", 12), ("owner_33", 0))


def prepare_demo(folder: Path, *, say: Callable[[str], None] = lambda text: None) -> Path:
    """Make a model with three open requests; one that is there from the last time is taken as it is.

    Args:
        folder (`Path`): a new folder, or one that this has made.
        say (*callable*, *optional*): receives a line about each stage.

    Returns:
        `Path`: the folder of the model.

    Raises:
        RecipeError: if the folder holds something else.
    """
    from hf_clamu.demo import prepare
    from hf_clamu.recipe import Recipe

    model = folder / "model"
    if (model / LEDGER_NAME).is_file():
        say(f"Taking the demo in {folder} as it is.")
        return model
    if folder.exists() and any(folder.iterdir()):
        raise RecipeError(f"{folder} is not empty, and holds no demo of the desk. Remove it, or go to another folder.")
    prepare(folder, say=say)
    say("Finetuning 48 owners' digits and learning six masks")
    recipe = (folder / "recipe-clusters.yaml").read_text(encoding="utf-8")
    # The demo of the command line keeps all rows for training; here some are kept back, so that requests show scores.
    recipe = recipe.replace("  id_column: id\n", "  id_column: id\n  validation_fraction: 0.25\n")
    (folder / "recipe-desk.yaml").write_text(recipe, encoding="utf-8")
    Recipe.load(folder / "recipe-desk.yaml").trainer().train().save_pretrained(model)
    came = datetime.date.fromisoformat(today())
    letters = [
        Asked(tasks=(owner,), name=f"letter-{number}", received=(came - datetime.timedelta(days=days)).isoformat())
        for number, (owner, days) in enumerate(_LETTERS, start=1)
    ]
    RequestBook.of(str(model)).add(letters)
    return model
