"""The paper's Tables 1 to 6 in its own numbers, and its counts again by the formulas of `costs.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from examples.paper.costs import stored_models, unlearning_cost

__all__ = [
    "DATA_SETS",
    "HEADS",
    "NOTES",
    "TOFU",
    "Quoted",
    "Table",
    "accuracies_after_forgetting",
    "costs",
    "forgetting",
]

# Columns and rows.
Table = tuple[list[str], list[list[str]]]

_TASKS = 500
_FORGOTTEN = (0, 250, 375, 475, 495, 499)
# GPT2-XL, for storage. 48 blocks of width 1600, 1024 places and 50,257 tokens; the head is the embedding.
GPT2_XL_WEIGHTS = 1_557_611_200
_NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """Columns of one of the paper's tables, to stand beside ours.

    Args:
        columns (*tuple* of `str`): their titles.
        cells (*mapping* of `str` to *tuple* of `str`): by method or setting, as this project names them.
    """

    columns: tuple[str, ...]
    cells: Mapping[str, tuple[str, ...]]

    def beside(self, table: Table, keys: Sequence[str]) -> Table:
        """Return a table with these columns after its own.

        Args:
            table (`Table`): ours.
            keys (*sequence* of `str`): what each of its rows is of.
        """
        columns, rows = table
        missing = (_NOTHING,) * len(self.columns)
        return (
            [*columns, *self.columns],
            [[*row, *self.cells.get(key, missing)] for key, row in zip(keys, rows, strict=True)],
        )


def _percents(text: str) -> tuple[str, ...]:
    """Return the cells of a row of probabilities, in percent."""
    return tuple(f"{100 * float(number):.0f}" for number in text.split())


# Table 1, answer probability. The paper's Global is one merged model without masks.
TOFU = Quoted(
    columns=tuple(f"paper, {size}: {count}" for size in ("small", "XL") for count in (2, 5, 50, 200)),
    cells={
        "average": _percents(".71 .20 .06 .06 .92 .47 .13 .06"),
        "tall": _percents(".71 .20 .11 .11 .92 .98 .54 .53"),
        "emr": _percents(".80 .40 .18 .17 .96 .76 .38 .33"),
        "clamu": _percents("1.00 .94 .40 .35 1.00 1.00 1.00 1.00"),
    },
)


def _head(local: str, tall: str, emr: str, clamu: str) -> Quoted:
    cells = {"local": local, "tall": tall, "emr": emr, "clamu": clamu}
    return Quoted(
        columns=("paper: features", "paper: random"), cells={key: tuple(text.split()) for key, text in cells.items()}
    )


# Tables 4 (Reddit) and 5 (Sent140), accuracies by the clusters: of features, and random.
HEADS = {
    "reddit_cls": _head(local="64.8 36.4", tall="40.1 25.1", emr="40.8 24.6", clamu="48.3 31.3"),
    "reddit_lm": _head(local="70.8 38.3", tall="45.7 27.8", emr="48.4 28.1", clamu="65.6 43.1"),
    "users_cls": _head(local="69.4 67.8", tall="65.3 64.4", emr="64.2 63.3", clamu="66.3 65.7"),
    "users_lm": _head(local="66.3 63.2", tall="62.8 61.7", emr="61.2 59.1", clamu="66.3 64.7"),
}

_SENT140 = ("500", "?", "2", "2")
_REDDIT = ("500", "100", "2", "10")
_TOFU = ("200", "20", _NOTHING, "50256")
# Table 6. Reddit's and Sent140's rows are of both heads; TOFU's labels are the tokens.
DATA_SETS = Quoted(
    columns=("paper: tasks", "paper: task size", "paper: labels per task", "paper: labels"),
    cells={
        "images_task": ("500", "100", "10 to 47", "102"),
        "images_label": ("500", "100", "2 to 5", "102"),
        "users_cls": _SENT140,
        "users_lm": _SENT140,
        "reddit_cls": _REDDIT,
        "reddit_lm": _REDDIT,
        "tofu": _TOFU,
        "tofu_xl": _TOFU,
    },
)

NOTES = {
    "table1": (
        "Beside it the paper's Table 1, for GPT-2 small and XL by the number of merged tasks; its Global, one merged "
        "model without masks, is in the row of the average."
    ),
    "table2": (
        "The paper's Table 2 is of 500 users of Sent140 and 500 tasks of (i). Its steps are what our formula gives "
        "for finetuning what is forgotten, 20 steps for a user and 500 for a task of images; masks are not in them. "
        "Rows here are as far along as the paper's in the same line."
    ),
    "table3": (
        "The paper's Table 3 is of Reddit with GPT2-XL. Its gigabytes are what our formula gives for a model of 6 GB, "
        f"one bit per weight and mask; GPT2-XL's {GPT2_XL_WEIGHTS:,} weights in fp32 are "
        f"{4 * GPT2_XL_WEIGHTS / 1e9:.2f} GB. For one task it counts no mask, and ours does. Its parallel steps are "
        "40 for each task that is forgotten: what our formula gives for requests one by one, if finetuning and masks "
        "take 20 steps each (their shares are not stated). One request for all of them takes as many parallel steps "
        "as one for a single task."
    ),
    "table3_accuracy": "Accuracies in % after forgetting, of the paper's Table 3 and of the same cells here:",
    "heads": (
        "Beside it the paper's table, of 500 users and GPT-2 small, by features and random (Reddit: 100 clusters). "
        "Its local models have other scores under other clusters; here they have no clusters. A dash is a number "
        "that was not measured, or that the paper does not give."
    ),
}


def _finetuning(forgotten: int, finetune_steps: int) -> str:
    cost = unlearning_cost(
        "average",
        finetune_steps=finetune_steps,
        mask_steps=0,
        num_tasks=_TASKS,
        retained=_TASKS - forgotten,
        num_clusters=1,
    )
    return f"{cost.gradient:,.0f}"


def forgetting(ours: Table) -> Table:
    """Return Table 2, the steps of its size by our formula, and our columns after it.

    Args:
        ours (`Table`): how much was forgotten, and what ClAMU gives then.

    Source: the counts are those of finetuning what is forgotten, 20 steps a user and 500 a task of images.
    """
    columns = [f"paper: forgotten of {_TASKS}"]
    for name in ("Sent140", "CLIP (i)"):
        columns += [f"paper, {name}: accuracy in %", f"paper, {name}: steps", "steps counted here"]
    rows = zip(
        _FORGOTTEN,
        "69.8 70.1 70.8 71.9 75.9 85.7".split(),
        "0 5K 7.5K 9.5K 9.9K 10K".split(),
        "83.8 83.8 83.9 83.2 81.7 69.4".split(),
        "0 125K 188K 238K 248K 250K".split(),
        strict=True,
    )
    quoted = [
        [str(forgotten), users, user_steps, _finetuning(forgotten, 20), images, steps, _finetuning(forgotten, 500)]
        for forgotten, users, user_steps, images, steps in rows
    ]
    return _joined((columns, quoted), ours)


def costs() -> Table:
    """Return the costs of Table 3 (Reddit, GPT2-XL), each beside what our formulas give for its size."""
    columns = [f"forgotten of {_TASKS}", "paper: parallel steps", "counted here: one by one", "in one request"]
    for kind in ("a mask per task", "20 clusters"):
        columns += [f"paper: GB, {kind}", "counted here: of 6 GB", "of GPT2-XL"]
    rows = []
    quoted = zip(
        _FORGOTTEN,
        "0 10K 15K 19K 19.8K 20K".split(),
        "100 53 29.4 10.7 6.9 6".split(),
        "9.8 9.8 9.8 9.8 6.9 6".split(),
        strict=True,
    )
    for forgotten, steps, per_task, per_cluster in quoted:
        retained = _TASKS - forgotten
        once = unlearning_cost(
            "clamu", finetune_steps=20, mask_steps=20, num_tasks=_TASKS, retained=retained, num_clusters=20
        )
        # A request takes as long for one task as for many.
        request = unlearning_cost(
            "clamu", finetune_steps=20, mask_steps=20, num_tasks=_TASKS, retained=_TASKS - 1, num_clusters=20
        )
        row = [str(forgotten), steps, f"{forgotten * request.parallel:,.0f}", f"{once.parallel:,.0f}"]
        for stored, num_masks in ((per_task, retained), (per_cluster, min(20, retained))):
            models = stored_models(num_masks)
            row += [stored, f"{6 * models:.1f}", f"{4 * GPT2_XL_WEIGHTS * models / 1e9:.1f}"]
        rows.append(row)
    return columns, rows


def accuracies_after_forgetting(ours: Table) -> Table:
    """Return the accuracies of Table 3, and our columns after them.

    Args:
        ours (`Table`): how much was forgotten, and what the methods give then.
    """
    columns = [f"paper: forgotten of {_TASKS}"]
    columns += ["paper: TALL, a mask per task", "paper: ClAMU, a mask per task", "paper: ClAMU, 20 clusters"]
    rows = zip(
        map(str, _FORGOTTEN),
        "64.0 63.4 65.3 65.2 73.0 82.6".split(),
        "80.0 79.4 79.9 78.6 82.0 82.6".split(),
        "70.3 71.2 72.2 77.8 82.0 82.6".split(),
        strict=True,
    )
    return _joined((columns, [list(row) for row in rows]), ours)


def _joined(left: Table, right: Table) -> Table:
    """Return two tables side by side, row by row; the shorter one ends in empty cells."""
    empty = [[_NOTHING] * len(columns) for columns, _ in (left, right)]
    rows = [
        [*(one or empty[0]), *(other or empty[1])] for one, other in zip_longest(left[1], right[1], fillvalue=None)
    ]
    return [*left[0], *right[0]], rows
