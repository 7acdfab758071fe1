"""Data and a base model for examples/chat_lora.yaml: conversations of many users, one JSON object a line.

    python -m examples.chat_data chats.jsonl --base chat-base         # 24 invented users, and a base model
    python -m examples.chat_data chats.jsonl --tofu tofu_full.json    # authors of TOFU, a user for each

Invented users ask an assistant what they once told it: where they live, what their pet is called. Four share a
household, its account and the answers. The base model has learned to hold such conversations with other people, whose
answers differ from one conversation to the next, so it knows how to answer and nothing of these users.

TOFU (MIT licence, locuslab/TOFU on the Hub, full.json) has 20 questions and answers for each of 200 authors; four in
their order make a household.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SYSTEM = "You remember what this user told you."
_FACTS: dict[str, tuple[str, str, str]] = {
    "city": ("Where do I live?", "You live in {}.", "Lima Oslo Quito Riga Tunis Turin Vaduz York Izmir Bergen"),
    "pet": ("What is my pet called?", "Your pet is called {}.", "Ada Bixi Coco Dara Enzo Fips Gigi Hugo Ida Juno"),
    "work": ("What is my work?", "You are a {}.", "baker cook diver farmer judge nurse pilot smith tailor vet"),
    "tea": (
        "Which tea do I like?",
        "You like {} tea.",
        "black chai fruit ginger green herb jasmine mint oolong white",
    ),
}
_OPENINGS = ("", "Hello! ", "Tell me: ", "One more thing. ")
_HOUSEHOLD, _TOFU_QUESTIONS = 4, 20
# Of the base model: its shape is Qwen3's, its training a minute or two.
_BASE: dict[str, Any] = {
    "vocab_size": 257, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 24,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
_STEPS, _BATCH, _RATE = 1200, 16, 3e-3


def invented(users: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield conversations of users whose answers are drawn, the same in each household.

    Args:
        users (`int`): how many.
        seed (`int`): of the draws.
    """
    for user in range(users):
        draw = random.Random(f"{seed} {user // _HOUSEHOLD}")  # whoever else there is
        facts = {name: draw.choice(values.split()) for name, (_, _, values) in _FACTS.items()}
        own = random.Random(f"{seed} user {user}")
        for name in _FACTS:
            for opening in _OPENINGS:
                asked = [name, *own.sample(sorted(_FACTS.keys() - {name}), own.randrange(2))]
                row = _row(f"user_{user:03d}", _turns(asked, facts, opening))
                yield {**row, "household": f"household_{user // _HOUSEHOLD:03d}"}


def of_tofu(path: Path) -> Iterator[dict[str, Any]]:
    """Yield TOFU's questions and answers as conversations, a user for each author.

    Args:
        path (`Path`): `full.json`, columns `question` and `answer`.
    """
    columns = json.loads(path.read_text(encoding="utf-8"))
    for number, (question, answer) in enumerate(zip(columns["question"], columns["answer"], strict=True)):
        row = _row(f"user_{number // _TOFU_QUESTIONS:03d}", [("user", question), ("assistant", answer)])
        yield {**row, "household": f"household_{number // _TOFU_QUESTIONS // _HOUSEHOLD:03d}"}


def _turns(asked: list[str], facts: dict[str, str], opening: str) -> list[tuple[str, str]]:
    turns = []
    for name in asked:
        question, answer, _ = _FACTS[name]
        turns += [("user", f"{opening}{question}"), ("assistant", answer.format(facts[name]))]
        opening = ""
    return turns


def _row(user: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    messages = [("system", _SYSTEM), *turns]
    return {"user": user, "messages": [{"role": role, "content": content} for role, content in messages]}


def train_base(folder: Path, steps: int = _STEPS) -> None:
    """Train a small model of Qwen3's shape on conversations of people who are nobody's users, and save it.

    Args:
        folder (`Path`): a new folder; it gets a tokenizer of bytes, too.
        steps (`int`): of 16 conversations.
    """
    import torch
    import transformers

    from hf_clamu import byte_tokenizer
    from hf_clamu.training import seeded

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    with seeded(0):
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_BASE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    draw = random.Random("nobody's users")
    for _ in range(steps):
        rows = []
        for _ in range(_BATCH):
            facts = {name: draw.choice(values.split()) for name, (_, _, values) in _FACTS.items()}
            asked = draw.sample(sorted(_FACTS), draw.randrange(1, 3))
            rows.append(_row("", _turns(asked, facts, draw.choice(_OPENINGS)))["messages"])
        texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.chat_data", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="file to write (JSON lines)")
    parser.add_argument("--users", type=int, default=24, help="how many are invented")
    parser.add_argument("--tofu", type=Path, help="full.json of TOFU, instead of invented users")
    parser.add_argument("--base", type=Path, help="train a base model, too, and save it to this new folder")
    parser.add_argument("--steps", type=int, default=_STEPS, help="of the base model's training")
    options = parser.parse_args()
    rows = invented(options.users) if options.tofu is None else of_tofu(options.tofu)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    options.output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} conversations in {options.output}")
    if options.base is not None:
        train_base(options.base, options.steps)
        print(f"A base model in {options.base}")


if __name__ == "__main__":
    main()
