"""A CLIP image classifier whose head is made of CLIP's own text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import TaskDataset

__all__ = ["clip_classifier"]

_PROBES = 8


@torch.no_grad()
def clip_classifier(
    folder: Path,
    tasks: TaskDataset,
    *,
    checkpoint: str = "openai/clip-vit-base-patch32",
    prompt: str = "a photo of a {label}",
) -> None:
    """Write `CLIPForImageClassification` with a linear head that repeats CLIP's zero-shot logits as far as it can.

    CLIP's logit of a label is `s * <t, P LN(h_cls)> / |P LN(h_cls)|`, with `t` the unit embedding of the prompt, `P`
    the visual projection, `LN` the last layer norm (gain g, bias b), `h_cls` the last state of the class token and `s`
    the temperature. The head holds everything in it that is linear: with `t P = w`,
    `logit = s / n * (w g (h - mean(h)) / d + w b)`. It differs from CLIP in three things:

    - transformers' classifier pools by the MEAN OF THE PATCH TOKENS; CLIP takes the class token, and nothing in its
      training ties the patch tokens to the text. That is the architecture's, so zero-shot scores are below CLIP's,
      and finetuning starts there.
    - the layer norm's division by the deviation of `h` is one constant `d` for all images;
    - the embedding's division by its length is one constant `n`; no argmax depends on it, only how sure the model is.

    `d` and `n` are means over a few images of noise: constants taken from the tasks' images would carry what is to be
    forgotten into every model.

    Args:
        folder (`Path`): receives the classifier and CLIP's image processor.
        tasks (`TaskDataset`): name the labels.
        checkpoint (`str`): CLIP, on the Hub or in a folder.
        prompt (`str`): what is said of each label, with a slot `{label}`.

    Raises:
        RecipeError: if the prompt has no slot, or the tasks have no label names.

    Source: the ClAMU paper, which initialises heads from CLIP's text encoder; CLIP (arXiv 2103.00020), section 3.1.
    """
    import transformers

    names = list(tasks.spec.label_names or ())
    if "{label}" not in prompt or not names:
        raise RecipeError(f"A CLIP head needs label names and a prompt with a slot {{label}}; found {prompt!r}.")
    clip: Any = transformers.CLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    config = clip.config
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    model: Any = transformers.CLIPForImageClassification(config).eval()
    model.vision_model.load_state_dict(clip.vision_model.state_dict())

    texts = tokenizer([prompt.replace("{label}", name) for name in names], padding=True, return_tensors="pt")
    found = clip.get_text_features(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    text_embeddings = torch.nn.functional.normalize(found.pooler_output, dim=-1)
    weight_LD, bias_L = _head(clip, text_embeddings)
    model.classifier.weight.copy_(weight_LD)
    model.classifier.bias.copy_(bias_L)
    model.save_pretrained(folder)
    transformers.AutoImageProcessor.from_pretrained(checkpoint).save_pretrained(folder)


def _head(clip: Any, text_embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm = clip.vision_model.post_layernorm
    deviation, length = _constants(clip)
    unnormed_LD = text_embeddings @ clip.visual_projection.weight * (clip.logit_scale.exp() / length)
    gained_LD = unnormed_LD * norm.weight
    # Subtracting the mean of h is linear, so it can be done to the weights.
    centred_LD = gained_LD - gained_LD.mean(-1, keepdim=True)
    return centred_LD / deviation, unnormed_LD @ norm.bias


def _constants(clip: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the deviation of pooled states and the length of embeddings, on noise."""
    size = clip.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_PROBES, clip.config.vision_config.num_channels, size, size, generator=generator)
    states = clip.vision_model(pixel_values=noise).last_hidden_state[:, 1:].mean(1)
    deviation = (states.var(-1, correction=0) + clip.vision_model.post_layernorm.eps).sqrt()
    embeddings = clip.visual_projection(clip.vision_model.post_layernorm(states))
    return deviation.mean(), embeddings.norm(dim=-1).mean()
