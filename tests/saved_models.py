"""Saved models of every kind that many tests read: fixtures, made once per run."""

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


_T5 = {"model_type": "t5", "vocab_size": 257, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="session")
def saved_kind(tiny, saved_text, saved_image, tmp_path_factory):
    """Gives the folder of a saved model of a kind: text, image, lm, seq2seq or words; not to be changed."""
    folders = {"text": saved_text, "image": saved_image}

    def folder_of(kind):
        if kind not in folders:
            ends = {"pad_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 256}
            base = {"lm": None, "words": tiny.config("text"), "seq2seq": {**_T5, **ends}}[kind]
            # So far that clusters write different texts.
            rate = {"lm": 0.1, "words": 0.01, "seq2seq": 0.03}[kind]
            model = tiny.train("lm", tiny.tasks(kind), base, learning_rate=rate, finetune_steps=6)
            folders[kind] = tmp_path_factory.mktemp("saved") / kind
            model.save_pretrained(folders[kind])
        return folders[kind]

    return folder_of


@pytest.fixture(scope="session")
def exported(saved_kind, tmp_path_factory):
    """Gives the folder of a plain checkpoint: of a cluster, the global model (`None`) or the base (`"base"`)."""
    folders = {}

    def folder_of(kind, cluster):
        if cluster == "base":
            return saved_kind(kind) / "base_model"
        if (kind, cluster) not in folders:
            folders[kind, cluster] = tmp_path_factory.mktemp("plain") / kind
            ClamuModel.from_pretrained(saved_kind(kind)).export(folders[kind, cluster], cluster=cluster)
        return folders[kind, cluster]

    return folder_of


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
        # By its scores the global model could be the base model, and no test would see the difference.
        changes = {"global_scaling": 1.0, **changes}
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
