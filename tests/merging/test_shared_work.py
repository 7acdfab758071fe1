"""Rows of numbers in the journal: features and sketches of many tasks."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from hf_clamu.merging import merge_tasks
from hf_clamu.merging.shared_work import entries_of, without_rows
from hf_clamu.storage import Journal


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal", interval=0.0)
    journal.open("run")
    return journal


def test_rows_come_back_with_their_entries(journal):
    rows = torch.randn(40, 600, generator=torch.Generator().manual_seed(0))
    entries = {f"task_{n}": {"data_digest": "d", "row": None if n == 5 else rows[n]} for n in range(40)}
    entries |= {"plain": {"a": 1}, "number": 3}
    part = journal.write("features", *without_rows(entries))
    with safe_open(part.path, framework="pt") as file:
        assert len(file.metadata()["part"]) < 100 * len(entries)
    (read,) = journal.parts("features")
    found = entries_of(read)
    journal.remove([read])
    assert found.keys() == entries.keys()
    for item, entry in entries.items():
        if isinstance(entry, dict) and entry.get("row") is not None:
            assert torch.equal(found[item].pop("row"), entry["row"])
            assert found[item] == {"data_digest": "d"}
        else:
            assert found[item] == entry


@pytest.mark.parametrize(
    ("clustering", "localization", "stage"),
    [
        ("features", "emr", "features"),
        ("features", "emr", "finetune"),
        ("public_rows", "global", "base features"),
        ("stable_kmeans", "global", "base features"),
        ("stable_kmeans", "global", "finetune"),
    ],
)
def test_a_build_goes_on_with_the_rows_that_are_there(
    journal, images, trainer_of, merged_of, settings, assert_same, clustering, localization, stage
):
    arguments = settings(clustering=clustering, localization=localization)
    left = []

    def run(stops):
        trainer = trainer_of(images, arguments)
        trainer.journal = Journal(journal.folder, interval=0.0)
        trainer.journal.open("run")
        both = iter(("features", "base features"))
        if clustering == "stable_kmeans":
            next(both)  # its features come from task vectors

        def progress(items, description):
            named = next(both) if description == "features" else description
            if named == stage:
                left.append(len(items))
            yield from items if not stops or named != stage else list(items)[:2]
            if stops and named == stage:
                raise KeyboardInterrupt

        trainer.progress = progress
        return merge_tasks(trainer, arguments)

    with pytest.raises(KeyboardInterrupt):
        run(stops=True)
    assert_same(run(stops=False), merged_of(images, arguments))
    assert left == [6, 4]
