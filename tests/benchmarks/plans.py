"""What `clamu plan` says of documented cases.

python -m tests.benchmarks.plans                 # writes docs/scaling.md
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from hf_clamu import Recipe
from hf_clamu.planning import estimate_build
from tests.benchmarks import pages

GPT2 = {"model_type": "gpt2"}
XL = {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25}
LORA = {"peft_type": "LORA", "r": 16, "target_modules": ["c_attn", "c_proj", "c_fc"]}
# Shapes of Llama 3.2 1B and Llama 3.1 8B.
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_1B = {
    **LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "tie_word_embeddings": True,
}
LLAMA_8B = {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
ALL_LINEAR = {"peft_type": "LORA", "r": 16, "target_modules": "all-linear"}
# Name, base model, adapter, type of the base, tasks, processes. Examples of 128 tokens, 20 clusters, default settings.
CASES = (
    ("GPT-2 small, all weights", GPT2, None, None, 500, 1),
    ("GPT-2 small, LoRA of rank 16", GPT2, LORA, None, 500, 1),
    ("GPT-2 XL, all weights", XL, None, None, 500, 1),
    ("GPT-2 XL, all weights", XL, None, None, 500, 8),
    ("GPT-2 XL, LoRA of rank 16", XL, LORA, None, 500, 8),
    ("Llama 3.2 1B, LoRA of rank 16, base in bfloat16", LLAMA_1B, ALL_LINEAR, "bfloat16", 500, 1),
    ("Llama 3.1 8B, LoRA of rank 16, base in bfloat16", LLAMA_8B, ALL_LINEAR, "bfloat16", 500, 1),
)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lines = [f'{{"user": "u{n % 4}", "question": "q {n}", "answer": "a"}}\n' for n in range(4 * 20)]
        (Path(folder) / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        data = {"files": "rows.jsonl", "task_column": "user"}
        data |= {"prompt_column": "question", "completion_column": "answer"}
        for name, base, adapter, dtype, tasks, processes in CASES:
            values = {"base_model": base, "data": data, "arguments": {"num_clusters": 20}}
            if adapter is not None:
                values["peft_config"] = adapter
            if dtype is not None:
                values["dtype"] = dtype
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(values), encoding="utf-8")
            found = estimate_build(Recipe.load(path), num_tasks=tasks, num_processes=processes, tokens=128)
            sizes = [
                f"{number / 2**30:.1f} GiB" for number in (found.memory_bytes, found.model_bytes, found.scratch_bytes)
            ]
            millions = [f"{found.num_parameters / 1e6:,.0f} M", f"{found.num_trained / 1e6:,.1f} M"]
            rows.append((name, tasks, processes, *millions, *sizes))
    columns = (
        "model",
        "tasks",
        "processes",
        "weights",
        "take part",
        "memory of each",
        "saved model",
        "files meanwhile",
    )
    note = (
        "20 clusters. The base models are made from configurations here, so the saved models hold them; a base that "
        "is on the Hub is not part of the saved model. Memory is without activations. "
        "`python -m tests.benchmarks.plans`."
    )
    pages.write("scaling.md", "plans", f"{pages.table(columns, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
