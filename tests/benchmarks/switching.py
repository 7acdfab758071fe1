"""Switching from one cluster's mask to another's; against copying all weights."""

from __future__ import annotations

import itertools

import torch

from hf_clamu.exact import FixedPoint, PackedMask, WeightSwitch, packed_size
from tests.benchmarks.rows import Row, Size, ratios, times
from tests.benchmarks.vectors import shapes_of


def measure(size: Size, rounds: int) -> list[Row]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        shapes = shapes_of(size.gpt2)
        parameters = {name: torch.nn.Parameter(torch.randn(shape).to(dtype)) for name, shape in shapes.items()}
        delta = {name: torch.randint(-(2**20), 2**20, shape, dtype=torch.int32) for name, shape in shapes.items()}
        switch = WeightSwitch(parameters, delta, 1.0, FixedPoint())
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
        source = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        target = {name: parameter.detach().clone() for name, parameter in parameters.items()}

        def copy(source: dict = source, target: dict = target) -> None:
            for name, x in target.items():
                x.copy_(source[name])

        def select(switch: WeightSwitch = switch, parameters: dict = parameters, masks: itertools.cycle = masks):
            switch.select(parameters, next(masks))

        copied, selected = times([copy, select], rounds)
        kind = str(dtype).removeprefix("torch.")
        rows.append(
            Row(
                what=f"switch cluster, {kind}",
                against="`copy_` of all weights",
                values=ratios(selected, copied),
                target=2.5 if dtype == torch.float32 else None,
            )
        )
    return rows
