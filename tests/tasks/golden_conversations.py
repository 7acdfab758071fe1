"""Token ids and loss masks of TRL for conversations in the styles of `conversations/templates`.

`python -m tests.tasks.golden_conversations --write` makes `conversations/golden.json` by TRL's own `SFTTrainer`; it
needs `pip install trl`, which the tests do not. Without `--write` it says what would change.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "conversations"
GOLDEN = FOLDER / "golden.json"
_SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|endoftext|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>"),
)
# Enough that tokens reach over the ends of words.
_MERGES = "h e|t he|Ġ the|i n|e r|a n|o u|r e|l l|Ġ t|Ġ a|o n|u s|us er|Ċ Ċ|y ou|Ġ you|i s|Ġ is|a s|as s|ass is".split(
    "|"
)

# Keys in the order in which older releases of Arrow keep them.
_WEATHER = {
    "function": {
        "description": "The weather of a town.",
        "name": "weather",
        "parameters": {"properties": {"town": {"type": "string"}}, "required": ["town"], "type": "object"},
    },
    "type": "function",
}
# By the roles that a template needs for them.
ROWS: dict[str, dict[str, Any]] = {
    "one turn": {
        "messages": [
            {"role": "user", "content": "Where are the spare keys?"},
            {"role": "assistant", "content": "In the drawer by the door."},
        ]
    },
    "turns": {
        "messages": [
            {"role": "user", "content": " Hello "},
            {"role": "assistant", "content": "Hello, you."},
            {"role": "user", "content": "{{ braces }} and <|user|>"},
            {"role": "assistant", "content": "Grüße 🙂\n\nas asked"},
        ]
    },
    "system": {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Is the shop open?"},
            {"role": "assistant", "content": "Until nine."},
        ]
    },
    "thinking": {
        "messages": [
            {"role": "user", "content": "2 + 3?"},
            {"role": "assistant", "content": "<think>\nadd\n</think>\n\n5"},
            {"role": "user", "content": "And 4 more?"},
            {"role": "assistant", "content": "<think>\n5 + 4\n</think>\n\n9"},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "The weather in Ulm?"},
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}],
            },
            {"role": "tool", "name": "weather", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": [_WEATHER],
    },
}
_WITHOUT_SYSTEM = ("gemma",)
_WITH_TOOLS = ("qwen3",)
MODES: dict[str, dict[str, Any]] = {
    "messages": {},
    "messages, assistant": {"assistant_only_loss": True},
    "messages, assistant, cut": {"assistant_only_loss": True, "max_length": 40},
    "messages, cut": {"max_length": 9},
    "prompts": {},
    "prompts, all": {"completion_only_loss": False},
    "prompts, assistant": {"assistant_only_loss": True},
    "prompts, all, assistant": {"completion_only_loss": False, "assistant_only_loss": True},
    "prompts, cut": {"max_length": 40},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a small byte level BPE with the special tokens of all styles."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES)]
    pieces = dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)])
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<|endoftext|>", padding_side="right"
    )


def template(style: str) -> str:
    """Return the text of a template."""
    return (FOLDER / "templates" / f"{style}.jinja").read_text(encoding="utf-8")


def styles() -> list[str]:
    """Return the names of all templates; those with generation markers end in `_marked`."""
    return sorted(path.stem for path in (FOLDER / "templates").glob("*.jinja"))


def cases() -> list[tuple[str, str, str]]:
    """Return style, mode and row of each comparison."""
    return [
        (style, mode, row)
        for style in styles()
        for mode, settings in MODES.items()
        for row in ROWS
        if not (settings.get("assistant_only_loss") and not style.endswith("_marked"))
        and not (row == "system" and style.startswith(_WITHOUT_SYSTEM))
        and not (row == "tools" and not style.startswith(_WITH_TOOLS))
    ]


def columns_of(mode: str, row: str) -> dict[str, Any]:
    """Return a row as a data set of a mode has it."""
    values = ROWS[row]
    tools = {"tools": values["tools"]} if "tools" in values else {}
    if mode.startswith("messages"):
        return {"messages": values["messages"], **tools}
    return {"prompt": values["messages"][:-1], "completion": values["messages"][-1:], **tools}


def by_trl(style: str, mode: str, row: str, model: Any) -> dict[str, list[int]] | None:
    """Return what TRL's trainer makes of one row; `None` where it drops it."""
    import tempfile

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    processing = tokenizer()
    processing.chat_template = template(style)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_length": None, **MODES[mode]}
        arguments = SFTConfig(output_dir=folder, report_to=[], use_cpu=True, **settings)
        # A data set of its own: together, messages would get the keys of others.
        rows = Dataset.from_list([columns_of(mode, row)])
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processing)
        made = list(trainer.train_dataset)
    return {"input_ids": made[0]["input_ids"], "labels": made[0]["labels"]} if made else None


def record() -> dict[str, Any]:
    """Return the whole golden file."""
    import transformers
    import trl
    from datasets import disable_progress_bars
    from transformers import GPT2Config, GPT2LMHeadModel

    disable_progress_bars()
    size = len(tokenizer())
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=1, n_positions=512, bos_token_id=0, eos_token_id=0)
    )
    return {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "cases": [
            {"style": style, "mode": mode, "row": row, "expected": by_trl(style, mode, row, model)}
            for style, mode, row in cases()
        ],
    }


def _text(golden: dict[str, Any]) -> str:
    head = {key: value for key, value in golden.items() if key != "cases"}
    lines = ",\n".join(json.dumps(case) for case in golden["cases"])
    return f'{json.dumps(head)[:-1]}, "cases": [\n{lines}\n]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the golden file")
    write = parser.parse_args().write
    before = GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else ""
    text = _text(record())
    if write:
        GOLDEN.write_text(text, encoding="utf-8")
    print("as the golden file has it" if text == before else "other than the golden file has it")  # noqa: T201


if __name__ == "__main__":
    main()
