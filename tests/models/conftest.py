from __future__ import annotations

import shutil

import pytest
from catalogue import CATALOGUE, reference, same

from hf_clamu import ClamuModel


@pytest.fixture(scope="session")
def saved_text(tiny, tmp_path_factory):
    """The folder of a saved text model; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "text"
    tiny.train("text").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_image(tiny, tmp_path_factory):
    """The folder of a saved image model; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "image"
    tiny.train("image").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved_text, tmp_path):
    """A copy of the saved text model, to be damaged."""
    return shutil.copytree(saved_text, tmp_path / "model")


@pytest.fixture
def model(saved_text):
    return ClamuModel.from_pretrained(saved_text)


@pytest.fixture(scope="session")
def train(tiny):
    """Return a function that builds an architecture of the catalogue, from all tasks or some."""

    def build(name, tasks=None, **changes):
        kind, config = CATALOGUE[name]
        kind_of_files = kind if kind in tiny.kinds else "text"
        return tiny.train(kind_of_files, tasks or tiny.tasks(kind), base=config, **changes)

    return build


@pytest.fixture(scope="session")
def saved(train, tmp_path_factory):
    """Folders of saved models by architecture; not to be changed."""
    root = tmp_path_factory.mktemp("architectures")

    def folder(name):
        if not (root / name).exists():
            train(name).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def references(saved):
    """The weights of a saved model by cluster (also "global", and None for the base), from its files alone."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = {cluster: reference(saved(name), cluster) for cluster in (None, 0, 1, 2, "global")}
            values = list(known[name].values())
            # No two agree: what stays at the first mask, or at the base, is seen.
            assert not any(same(values[i], values[j]) for i in range(len(values)) for j in range(i))
        return known[name]

    return of
