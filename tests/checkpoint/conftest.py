"""What the tests of models that older releases saved share: the local models of those, and builds of today."""

from __future__ import annotations

import format_1
import pytest

from hf_clamu import ClamuModel


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """Folders of the checkpoints that the older releases merged, by task."""
    return format_1.local_models(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def build_of(local, tmp_path_factory):
    """Return a function that gives the folder of a build with some settings, without some of the tasks."""

    def build(settings, *gone):
        folder = tmp_path_factory.mktemp("built") / "model"
        chosen = {task_id: path for task_id, path in local.items() if task_id not in gone}
        ClamuModel.merge(format_1.BASE, chosen, settings).save_pretrained(folder)
        return folder

    return build
