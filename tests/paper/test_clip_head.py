"""The head made of CLIP's text encoder gives CLIP's own order of labels, up to what the classifier pools."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from examples.paper.bases import BASES
from examples.paper.clip_head import clip_classifier
from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.base_models.loading import load_base
from hf_clamu.errors import RecipeError
from hf_clamu.tasks import TaskDataset
from hf_clamu.training import seeded

NAMES = ("banded", "zig zagged", "a 3", "airport")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=257, max_position_embeddings=40, eos_token_id=256, bos_token_id=256, **sizes)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **sizes)
    with seeded(0):
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
        norm = model.vision_model.post_layernorm
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks():
    rows = {"task": ["t"] * 4, "image": [Picture.new("RGB", (20, 18), c) for c in ("red", "blue", "grey", "white")]}
    features = Features({"task": Value("string"), "image": Image(), "label": Value("int64")})
    dataset = Dataset.from_dict({**rows, "label": [0, 1, 2, 3]}, features=features)
    columns = {"task_column": "task", "image_column": "image", "label_column": "label"}
    return TaskDataset.from_dataset(dataset, **columns, label_names=NAMES)


@pytest.fixture(scope="module")
def base(checkpoint, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "made"
    clip_classifier(folder, tasks, checkpoint=str(checkpoint))
    return load_base(str(folder), tasks.spec, num_labels=4)


@torch.no_grad()
def _embeddings(checkpoint, pixels):
    """Unit text embeddings, and the image embeddings of the mean patch token before and after their parts."""
    clip = CLIPModel.from_pretrained(checkpoint).eval()
    texts = byte_tokenizer()([f"a photo of a {name}" for name in NAMES], padding=True, return_tensors="pt")
    text = clip.get_text_features(texts["input_ids"], attention_mask=texts["attention_mask"]).pooler_output
    states = clip.vision_model(pixel_values=pixels).last_hidden_state[:, 1:].mean(1)
    return clip, text / text.norm(dim=-1, keepdim=True), states


def test_the_head_is_the_linear_part_of_clip(checkpoint, base, tasks):
    pixels = torch.stack([example["pixel_values"] for example in tasks.encode("t", base.processor).train])
    clip, text, states = _embeddings(checkpoint, pixels)
    norm = clip.vision_model.post_layernorm
    with torch.no_grad():
        found = base.model.eval()(pixel_values=pixels).logits
        at_rest = base.model.classifier.bias
        # What the head holds constant, told from its bias and from one image.
        scale = (at_rest / (text @ clip.visual_projection(norm.bias))).mean()
        centred = (states - states.mean(-1, keepdim=True)) * norm.weight
        unscaled = scale * text @ clip.visual_projection(centred).T
        deviations = unscaled.T / (found - at_rest)
    assert torch.allclose(deviations, deviations[0, 0].expand_as(deviations), rtol=1e-3)
    assert deviations[0, 0] > 0
    assert scale > 0


def test_without_the_norms_bias_labels_come_in_clips_order(checkpoint, tasks, tmp_path):
    clip = CLIPModel.from_pretrained(checkpoint)
    torch.nn.init.zeros_(clip.vision_model.post_layernorm.bias)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    clip.save_pretrained(tmp_path)
    clip_classifier(tmp_path / "made", tasks, checkpoint=str(tmp_path))
    base = load_base(str(tmp_path / "made"), tasks.spec, num_labels=4)
    pixels = torch.stack([example["pixel_values"] for example in tasks.encode("t", base.processor).train])
    pixels = torch.cat([pixels, torch.randn(20, *pixels.shape[1:], generator=torch.Generator().manual_seed(1))])
    clip, text, states = _embeddings(tmp_path, pixels)
    with torch.no_grad():
        image = clip.visual_projection(clip.vision_model.post_layernorm(states))
        expected = text @ (image / image.norm(dim=-1, keepdim=True)).T
        found = base.model.eval()(pixel_values=pixels).logits.T
    assert torch.equal(found.argsort(0), expected.argsort(0))


def test_the_tower_is_clips_and_every_call_gives_the_same_bytes(checkpoint, base, tasks, tmp_path):
    clip = CLIPModel.from_pretrained(checkpoint)
    tower = base.model.vision_model.state_dict()
    assert all(torch.equal(tower[name], value) for name, value in clip.vision_model.state_dict().items())
    assert base.model.config.id2label == dict(enumerate(NAMES))
    BASES["clip_classifier"](tmp_path, tasks, checkpoint=str(checkpoint))
    again = load_base(str(tmp_path), tasks.spec, num_labels=4)
    assert torch.equal(again.model.classifier.weight, base.model.classifier.weight)


def test_a_prompt_without_a_slot_is_refused(checkpoint, tasks, tmp_path):
    with pytest.raises(RecipeError, match="a prompt with a slot"):
        clip_classifier(tmp_path, tasks, checkpoint=str(checkpoint), prompt="a photo")
