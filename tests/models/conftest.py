from __future__ import annotations

import shutil

import pytest

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
