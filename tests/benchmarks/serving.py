"""Loading for serving, against reading the same files; and many mask adapters, against few."""

from __future__ import annotations

import os
import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from hf_clamu import ClamuArguments, ClamuModel
from hf_clamu.exact import sha256_files
from tests.benchmarks.merging import write_checkpoints
from tests.benchmarks.rows import Peak, Row, Size, ratios, timed, times

_CLUSTERS = 4


def measure(size: Size, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, local = write_checkpoints(folder, size.gpt2, _CLUSTERS)
        # The grid of a finetuning that moves weights by as much as these checkpoints, 5e-4.
        arguments = ClamuArguments(clustering="none", localization="emr", fraction_bits=17)
        merged = ClamuModel.merge(str(base), {path.name: str(path) for path in local}, arguments)
        merged.save_pretrained(folder / "merged")
        merged.export(folder / "plain")
        del merged
        # The base model is inside.
        files = [path for path in (folder / "merged").rglob("*") if path.is_file()]

        def read() -> None:
            for path in files:
                with path.open("rb") as file:
                    while file.read(1 << 24):
                        pass

        def load_plain(*, touches: bool = False) -> None:
            model = transformers.GPT2LMHeadModel.from_pretrained(folder / "plain")
            if touches:
                for parameter in model.parameters():
                    parameter.sum()

        def load() -> None:
            for path in files:  # as in a new process: no file is known to be unchanged
                os.utime(path)
            ClamuModel.from_pretrained(folder / "merged")

        seconds = times(
            [read, load, lambda: sha256_files(files), load_plain, partial(load_plain, touches=True)], rounds
        )
        rows = [
            Row(
                what=f"`from_pretrained`, {_CLUSTERS} clusters",
                against="reading the same files",
                values=ratios(seconds[1], seconds[0]),
                target=3.5,
            ),
            Row(
                what="…",
                against="transformers' own load of an exported plain checkpoint, which maps the file",
                values=ratios(seconds[1], seconds[3]),
                target=2,
            ),
            Row(
                what="…",
                against="the same, and reading each weight once",
                values=ratios(seconds[1], seconds[4]),
            ),
            Row(
                what="… SHA-256 of the same files alone, several at a time",
                against="reading the same files",
                values=ratios(seconds[2], seconds[0]),
            ),
        ]
        return rows + _adapters(folder / "small", size, rounds)


def _adapters(folder: Path, size: Size, rounds: int) -> list[Row]:
    from peft import PeftModel

    base, local = write_checkpoints(folder, {**size.small, "vocab_size": 257}, 2)
    arguments = ClamuArguments(clustering="none", localization="emr")
    merged = ClamuModel.merge(str(base), {path.name: str(path) for path in local}, arguments)
    merged.save_pretrained(folder / "merged")
    model_bytes = (base / "model.safetensors").stat().st_size
    late, memory = [], []
    for _ in range(rounds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            live = transformers.GPT2LMHeadModel.from_pretrained(base)
            model = PeftModel.from_pretrained(live, folder / "merged", "first", subfolder="masks/cluster_000")
            taken = []
            peak = Peak()
            for number in range(size.adapters):
                place = f"masks/cluster_{number % 2:03d}"
                taken.append(timed(partial(model.load_adapter, folder / "merged", f"a{number}", subfolder=place)))
            memory.append(peak.above_first() / size.adapters / (model_bytes / 32))
            few, many = ("a0", "a1"), (f"a{size.adapters - 2}", f"a{size.adapters - 1}")
            switched = [timed(partial(_activate, model, names)) for names in (few, many)]
        part = max(1, size.adapters // 10)
        # Medians: a process's first adapters are those that bring the delta.
        late.append((statistics.median(taken[-part:]) / statistics.median(taken[:part]), switched[1] / switched[0]))
    return [
        Row(what=f"load one of the last of {size.adapters} mask adapters (PEFT)", against="one of the first",
            target=1.5, values=[one for one, _ in late]),
        Row(what=f"activate one with {size.adapters} loaded, the last", against="the first",
            target=1.5, values=[one for _, one in late]),
        Row(what="memory of each", against="a bit per weight", values=memory),
    ]  # fmt: skip


def _activate(model: Any, names: tuple[str, ...]) -> None:
    for name in names:
        model.set_adapter(name)
