"""Switching from one cluster's mask to another's, also of other factors, and to the global model.

Against copying all weights.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from hf_clamu.exact import GLOBAL_MODEL, FixedPoint, PackedMask, WeightSwitch, packed_size
from tests.benchmarks.rows import Row, Size, ratios, times
from tests.benchmarks.vectors import shapes_of


def measure(size: Size, rounds: int) -> list[Row]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        shapes = shapes_of(size.gpt2)
        parameters = {name: torch.nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in shapes.items()}
        delta = {name: torch.randint(-(2**20), 2**20, shape, dtype=torch.int32) for name, shape in shapes.items()}
        switch = WeightSwitch(parameters, delta, 1.0, FixedPoint(), global_alpha=0.25)
        masks = itertools.cycle(
            PackedMask(
                bits={
                    name: torch.randint(0, 256, (packed_size(shape.numel()),), dtype=torch.uint8)
                    & (255 if shape.numel() % 8 == 0 else 2 ** (shape.numel() % 8) - 1)
                    for name, shape in shapes.items()
                }
            )
            for _ in range(3)
        )
        tuned = itertools.cycle(replace(next(masks), factors=dict.fromkeys(shapes, factor)) for factor in (0.5, 2.0))
        source = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        target = {name: parameter.detach().clone() for name, parameter in parameters.items()}

        def copy(source: dict = source, target: dict = target) -> None:
            for name, x in target.items():
                x.copy_(source[name])

        def select(switch: WeightSwitch = switch, parameters: dict = parameters, masks: itertools.cycle = masks):
            switch.select(parameters, next(masks))

        def select_tuned(switch: WeightSwitch = switch, parameters: dict = parameters, tuned: itertools.cycle = tuned):
            switch.select(parameters, next(tuned))

        def select_global(switch: WeightSwitch = switch, parameters: dict = parameters):
            switch.select(parameters, GLOBAL_MODEL)

        # The last comes from a cluster, and leads the first of the next round back from the global model.
        steps = [copy, select, select, select_tuned, select_tuned, select, select_global]
        copied, back, selected, _, retuned, _, there = times(steps, rounds)
        kind, against = str(dtype).removeprefix("torch."), "`copy_` of all weights"
        target = 2.5 if dtype == torch.float32 else 3
        rows += [
            Row(what=f"switch cluster, {kind}", against=against, values=ratios(selected, copied), target=target),
            Row(what=f"… of other factors, {kind}", against=against, values=ratios(retuned, copied)),
            Row(what=f"… to a global model with its own alpha, {kind}", against=against, values=ratios(there, copied)),
            Row(what=f"… back from it, {kind}", against=against, values=ratios(back, copied)),
        ]
    return rows
