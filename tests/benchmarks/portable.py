"""What bits that hold on every x86-64 processor cost: the same training steps, with and without.

python -m tests.benchmarks.portable                 # writes docs/scaling.md
python -m tests.benchmarks.portable --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from hf_clamu.portability import PORTABLE_SETTINGS
from tests.benchmarks import pages

ROUNDS = 5


def steps() -> dict[str, float]:
    """Seconds of ten training steps of a small language model and a small vision model."""
    import torch
    import transformers

    from hf_clamu.training import deterministic, seeded

    gpt2 = transformers.GPT2Config(n_layer=4, n_embd=512, n_head=8, vocab_size=257, n_positions=128)
    resnet = transformers.ResNetConfig(num_labels=10, layer_type="basic", depths=[2, 2, 2, 2])
    found = {}
    with deterministic(torch.get_num_threads()), seeded(0):
        ids = torch.randint(0, 257, (8, 128))
        pixels = torch.rand(8, 3, 64, 64)
        for name, model, inputs in (
            ("GPT-2, 13 M weights", transformers.GPT2LMHeadModel(gpt2), {"input_ids": ids, "labels": ids}),
            (
                "ResNet, convolutions",
                transformers.ResNetForImageClassification(resnet),
                {"pixel_values": pixels, "labels": torch.zeros(8, dtype=torch.int64)},
            ),
        ):
            model.train()
            for number in range(12):
                if number == 2:  # the first ones allocate
                    started = time.perf_counter()
                model(**inputs).loss.backward()
                model.zero_grad()
            found[name] = time.perf_counter() - started
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print, and leave the docs alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(steps()))  # noqa: T201
        return
    ratios: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        seconds = []
        for settings in ({}, PORTABLE_SETTINGS):
            command = [sys.executable, "-m", "tests.benchmarks.portable", "--one"]
            done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
            seconds.append(json.loads(done.stdout.splitlines()[-1]))
        for name in seconds[0]:
            ratios.setdefault(name, []).append(seconds[1][name] / seconds[0][name])
    if options.json:
        print(json.dumps(ratios, indent=2))  # noqa: T201
        return
    rows = [
        (name, f"{statistics.median(found):.2f}", f"{min(found):.2f} to {max(found):.2f}")
        for name, found in ratios.items()
    ]
    note = (
        f"Time of training steps with `portable: true`, divided by the time without; {options.rounds} runs of both, "
        f"one after the other. `python -m tests.benchmarks.portable` on {pages.machine()}."
    )
    pages.write("scaling.md", "portable", f"{pages.table(('model', 'ratio', 'runs'), rows)}\n\n{note}")


if __name__ == "__main__":
    main()
