"""The recipe for a file that was surveyed, with comments that say what to change."""

from __future__ import annotations

import json
from pathlib import Path

from hf_clamu.proposal.survey import Survey

__all__ = ["MAX_LENGTH", "SAMPLE", "recipe_text"]

# Messages to twelve shops, written for this package.
SAMPLE = Path(__file__).with_name("messages.csv")
MAX_LENGTH = 128

_TINY = f"""\
# A small model with random weights that reads bytes: it needs no network, and is there to try things. For real use
# name a pretrained model of the Hub or a folder instead of these lines, such as
#   base_model: distilbert/distilbert-base-uncased
# and take learning_rate: 5.0e-5.
base_model:
  model_type: gpt2
  n_positions: {MAX_LENGTH}
  n_embd: 64
  n_layer: 2
  n_head: 4
  resid_pdrop: 0.0
  embd_pdrop: 0.0
  attn_pdrop: 0.0
tokenizer: bytes
"""


def recipe_text(survey: Survey, *, files: str, base: str | None = None, preset: str = "per-task") -> str:
    """Return a recipe as YAML.

    Args:
        survey (`Survey`): of the file.
        files (`str`): the file's path, as the recipe is to name it.
        base (`str`, *optional*): a Hub id or folder; by default a small model made from a configuration.
        preset (`str`): the preset.
    """
    quoted = {name: json.dumps(getattr(survey.columns, name), ensure_ascii=False) for name in survey.columns.__slots__}
    ids = "  ids: strip  # white space at the ends of ids is removed\n" if survey.strips else ""
    steps, rate = (60, "2.0e-3") if base is None else (20, "5.0e-5")
    return f"""\
# Written by `clamu init`. Look it over, then: clamu plan, clamu train.
{_TINY if base is None else f"base_model: {json.dumps(base)}{chr(10)}"}
data:
  files: {json.dumps(files, ensure_ascii=False)}
  task_column: {quoted["task_column"]}  # whose row it is: the unit that can be forgotten
  text_column: {quoted["text_column"]}
  label_column: {quoted["label_column"]}
{ids}  max_length: {MAX_LENGTH}  # tokens; longer texts are cut
  validation_fraction: 0.2  # of each owner's rows, to measure with

arguments:
  preset: {preset}  # or: clusters, adapters, one-model
  finetune_steps: {steps}
  learning_rate: {rate}
  batch_size: 16
  num_threads: 1  # small models are fastest so; the number shows in the bits, so keep it

# Keep a private copy of the tokenised rows beside the model: requests then need no file, and an owner who edits or
# deletes a row stops nobody else's request. A forgotten owner's copy is destroyed with it.
snapshot: true
"""
