"""The same input through all weights of a model, as it is and as it was before requests."""

from __future__ import annotations

import io
import shutil

import pytest
from PIL import Image

from hf_clamu import ClamuModel, RecipeError
from hf_clamu.checkpoint.reader import read_checkpoint
from hf_clamu.desk.views.trying import TRY_COLUMNS, Tryout, earlier_states, takes_images, why_nothing_earlier
from hf_clamu.serving.prediction import predict


@pytest.fixture(scope="module")
def changed(tiny, tmp_path_factory):
    """A model that two tasks left, with receipts and a copy of what it was before each."""
    folder = tmp_path_factory.mktemp("views")
    model = tiny.train("text")
    model.save_pretrained(folder / "model")
    for task_id in ("user_1", "user_3"):
        shutil.copytree(folder / "model", folder / f"with-{task_id}")
        model.unmerge_task(task_id, receipt_dir=folder / "receipts")
        model.save_pretrained(folder / "model")
    return folder


def test_the_same_text_before_and_after(changed):
    source, receipts = str(changed / "model"), changed / "receipts"
    earlier = earlier_states(source, receipts)
    assert earlier == [str(changed / "with-user_3"), str(changed / "with-user_1")]
    tryout = Tryout(source=source, receipts=receipts)
    rows = tryout.rows(text="good work", task="user_1", before=earlier[-1])
    assert all(len(row) == len(TRY_COLUMNS) for row in rows)
    now, before = ([row[1:] for row in rows if row[0] == when] for when in ("now", "before"))
    for place, found in ((changed / "model", now), (changed / "with-user_1", before)):
        model = ClamuModel.from_pretrained(place)
        (told,) = predict(model, [{"text": "good work"}])
        assert found[1] == ("global model", told["label"], f"{told['score']:.3f}")
        assert len(found) == 3 + len(model.clusters)
    assert now[0] == before[0]  # the base model is the same
    assert now[-1][0] == "task user_1 (not merged: global model)"
    model = ClamuModel.from_pretrained(changed / "with-user_1")
    (told,) = predict(model, [{"text": "good work"}], task="user_1")
    assert before[-1] == (f"task user_1 (cluster {told['cluster']})", told["label"], f"{told['score']:.3f}")
    assert tryout.rows(text="good work", task="user_1", before=earlier[-1]) == rows


def test_a_model_that_was_changed_is_loaded_again(changed, tiny, tmp_path):
    shutil.copytree(changed / "with-user_1", tmp_path / "model")
    tryout = Tryout(source=str(tmp_path / "model"), receipts=tmp_path / "receipts")
    assert tryout.rows(text="good", task="user_1")[-1][1].startswith("task user_1 (cluster")
    model = ClamuModel.from_pretrained(tmp_path / "model")
    model.unmerge_task("user_1", receipt_dir=tmp_path / "receipts", data=tiny.tasks("text"))
    model.save_pretrained(tmp_path / "model")
    assert tryout.rows(text="good", task="user_1")[-1][1] == "task user_1 (not merged: global model)"


def test_an_image_and_words(saved_kind, tmp_path):
    data = io.BytesIO()
    Image.new("L", (8, 8), 128).save(data, format="PNG")
    images = Tryout(source=str(saved_kind("image")), receipts=tmp_path)
    assert takes_images(read_checkpoint(saved_kind("image")).task_spec)
    rows = images.rows(image=data.getvalue(), task="owner_00")
    assert {row[0] for row in rows} == {"now"}
    assert float(rows[0][3]) > 0
    words = Tryout(source=str(saved_kind("words")), receipts=tmp_path)
    assert len(words.rows(text="good 1 of 2")[0][2].split()) == 4
    texts = Tryout(source=str(saved_kind("lm")), receipts=tmp_path)
    assert len(texts.rows(text="good 1", max_new_tokens=4)) == 5


def test_wrong_inputs(saved_kind, changed, tmp_path):
    images, large = Tryout(source=str(saved_kind("image")), receipts=tmp_path), io.BytesIO()
    Image.new("1", (8000, 8000)).save(large, format="PNG")
    for image, said in (
        (None, "reads images"),
        (b"", "reads images"),
        (b"no image", "no image file that can be read"),
        (b"0" * ((20 << 20) + 1), "bytes, and at most"),
        (large.getvalue(), "pixels, and at most"),
    ):
        with pytest.raises(RecipeError, match=said):
            images.rows(image=image)
    texts = Tryout(source=str(changed / "model"), receipts=changed / "receipts")
    for text, said in ((None, "reads texts"), (" ", "reads texts"), ("a" * 20_001, "characters, and at most")):
        with pytest.raises(RecipeError, match=said):
            texts.rows(text=text)
    with pytest.raises(RecipeError, match="no such earlier state"):
        texts.rows(text="good", before="/etc")
    assert "beside it" in why_nothing_earlier(str(changed / "model"))
    assert earlier_states(str(changed / "with-user_1"), tmp_path / "none") == []
