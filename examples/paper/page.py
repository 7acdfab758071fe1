"""docs/paper.md, written from what was measured; nothing in it is typed by hand but the words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from examples.paper.advice import advice_rows
from examples.paper.claims import Claim, claims_of
from examples.paper.figures import draw
from examples.paper.measured import Measured, Value
from examples.paper.quoted import quoted_rows
from examples.paper.scale import Scale
from examples.paper.sections import SECTIONS, TITLES, markdown

__all__ = ["write_page"]

_BUDGET = (
    "**Tuning.** ClAMU is measured with what the library's preset `clusters` sets, and nothing of it is tuned. "
    "Every other method takes its scaling coefficient from the same grid (1, 2, 4, 8 and 16 times 1/T, and the "
    "sum) by the mean score of the tuning examples of the retained tasks, and TALL beside it its lambda from 0.2 to "
    '0.6 per cluster; the rows "alpha tuned" do the same for ClAMU. The average, local models, central finetuning '
    "and SISA have none to choose. Tasks are clustered as the preset does, unless a table says otherwise. Reported "
    "are other "
    "examples, that neither training nor tuning has seen (TOFU measures what is remembered: there both are halves of "
    "the training examples)."
)


def write_page(path: Path, images: Path, scale: Scale, folder: Path) -> list[str]:
    """Write the page and its figures.

    Args:
        path (`Path`): of the page.
        images (`Path`): folder of the figures, beside or under the page's.
        scale (`Scale`): what was to be measured.
        folder (`Path`): the results.

    Returns:
        *list* of `str`: experiments that are left out because cells are missing.
    """
    measured = Measured(scale, folder)
    parts, claims, left_out, settings = [], [], [], {}
    for name, experiment in scale.experiments.items():
        if not measured.is_done(name, experiment):
            left_out.append(name)
            continue
        settings |= dict.fromkeys(experiment.settings)
        own = claims_of(name, experiment, measured)
        claims += own
        text = [f"## {TITLES[name]}", f"`python -m examples.paper {name} --scale {scale.name}`"]
        figure = draw(images, name, experiment, measured)
        if figure is not None:
            text.append(f"![{TITLES[name]}]({images.relative_to(path.parent).as_posix()}/{figure})")
        text += SECTIONS[name](experiment, measured)
        text += _verdicts(own, scale)
        parts.append("\n\n".join(text))
    head = _head(scale, measured, claims, [name for name in scale.settings if name in settings])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([*head, *parts]) + "\n", encoding="utf-8")
    return left_out


def _head(scale: Scale, measured: Measured, claims: Sequence[Claim], settings: Sequence[str]) -> Iterator[str]:
    yield "# The paper's tables and figures"
    yield (
        "`examples/paper/` measures every table and figure of the ClAMU paper. What a scale runs is a recipe "
        f"(`examples/paper/scales/{scale.name}.yaml`), and this page is written by "
        f"`python -m examples.paper report --scale {scale.name} --docs` from results in JSON."
    )
    yield f"**Scale `{scale.name}`.** {scale.about.strip()}"
    shown = {name: scale.settings[name] for name in settings}
    rows = [[f"`{name}`", one.title, one.of_paper or "–"] for name, one in shown.items()]
    yield markdown((["setting", "here", "in the paper"], rows))
    for environment in measured.environments():
        libraries = ", ".join([environment["framework"], environment["models"]])
        seeds = ", ".join(map(str, scale.seeds))
        yield f"Measured on {environment['device']} ({libraries}), {environment['num_threads']} thread, seeds {seeds}."
    count, seconds = measured.effort()
    yield f"{count} numbers, which took {seconds / 60:.0f} minutes one after the other, finetuning included."
    yield _BUDGET
    if claims:
        yield "## Do the paper's orderings hold?"
        statements = dict.fromkeys((claim.name, claim.statement.partition(", K = ")[0]) for claim in claims)
        rows = []
        for name, statement in statements:
            own = [claim for claim in claims if claim.name == name]
            unique = list({(claim.statement, claim.setting): claim for claim in own}.values())
            held = sum(claim.holds for claim in unique)
            answer = "yes" if held == len(unique) else "no" if held == 0 else "in part"
            rows.append([statement, answer, f"{held} of {len(unique)}"])
        yield markdown((["ordering", "holds", "comparisons in its favour"], rows))
        yield (
            "By the means over the seeds; each comparison is below. The scores of the paper are of other and far "
            "larger models and data, so that only orderings can be compared. What the paper and its follow-up sum up "
            "in a number, and the same here:"
        )
        yield markdown((["statement", "the paper's number", "here"], list(quoted_rows(measured))))
        yield from (scale.remarks[name].strip() for name in ("quoted",) if name in scale.remarks)
    advice = list(advice_rows(measured))
    if advice:
        yield "## Which method to take"
        yield (
            "Per setting, in percent: the base model, a model for each task alone, the best of the merged models "
            "without masks, and masks. Taken is the preset that stores least among those within one standard error of "
            "the best. Where tasks are alike, one model has the rows of everybody, and masks of clusters have to beat "
            "that; a task's own model, and a mask of its own, help where tasks differ. A build measures the same on "
            "validation rows of your own data: `clamu train` prints the scores of base, global and own, and warns "
            'with "One model for all serves about as well as the masks" where masks are not worth it '
            "([methods](how-to/methods.md))."
        )
        columns = ["setting", "base", "local models", "one model", "masks of clusters", "masks of tasks", "take"]
        yield markdown((columns, advice))


def _verdicts(claims: Sequence[Claim], scale: Scale) -> Iterator[str]:
    if not claims:
        return
    rows = [
        [
            claim.statement,
            scale.settings[claim.setting].title,
            f"{claim.higher[0]} {_shown(claim, claim.higher[1])}",
            f"{claim.lower[0]} {_shown(claim, claim.lower[1])}",
            "yes" if claim.holds else "**no**",
            f"{claim.num_seeds} of {len(claim.higher[1].values)}",
        ]
        for claim in claims
    ]
    columns = ["the paper's ordering", "setting", "should be above", "should be below", "holds", "seeds"]
    yield markdown((columns, rows))
    failed = dict.fromkeys(claim.name for claim in claims if not claim.holds)
    for name in failed:
        if name in scale.remarks:
            yield scale.remarks[name].strip()


def _shown(claim: Claim, value: Value) -> str:
    return value.percent() if claim.is_percent else f"{value.mean:.2f} models"
