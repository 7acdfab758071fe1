from __future__ import annotations

import pytest
import torch

from hf_clamu.errors import ExactnessError
from hf_clamu.training import Workspace


class _Leaking(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.fixed = torch.nn.Parameter(torch.arange(3.0), requires_grad=False)
        self.register_buffer("seen", torch.zeros(3))
        self.leak: str | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.leak is not None:
            getattr(self, self.leak).data.copy_(torch.tensor([2.0, 1.0, 0.0]))
        return self.linear(x)


@pytest.mark.parametrize("name", ["seen", "fixed"])
def test_what_training_writes_beside_the_parameters_is_noticed(name):
    model = _Leaking()
    workspace = Workspace(model)
    with workspace.finetuning():
        model(torch.ones(1, 3)).sum().backward()
    model.leak = name

    def trained() -> None:
        with workspace.finetuning():
            model(torch.ones(1, 3))

    with pytest.raises(ExactnessError, match=f"changed '{name}'"):
        trained()
