"""Every combination of LoRA's options, merging, freezing and ties: exact, or refused before any training."""

from __future__ import annotations

import collections

import pytest

from tests.differential.options import cells, outcome

pytestmark = pytest.mark.filterwarnings("ignore")

_MAIN = ("nothing", "a target", "the embeddings", "lora_B")
# Everything once; what ties, heads and other layers have no part in, not again with each of them.
_ALL = [
    *(cell for cell in cells("gpt2", "lm") if cell.tied or cell.freeze in _MAIN),
    *(cell for cell in cells("gpt2", "text") if cell.freeze in _MAIN),
    *(cell for cell in cells("llama", "lm") if cell.freeze in ("nothing", "the embeddings")),
]
_FAST = {
    "gpt2, lm, head and embeddings, parameters, nothing, not tied": "exact",
    "gpt2, lm, dora, parameters, lora_B, tied": "exact",
    "gpt2, text, bias of all, frozen_a, a target, -": "exact",
    "llama, lm, all-linear, product, the embeddings, tied": "exact",
    "llama, lm, embeddings, frozen_a, nothing, tied": "shares its weight",
    "gpt2, lm, plain, parameters, lora_B, tied": "nothing to learn",
    "gpt2, text, plain, frozen_a, lora_B, -": "nothing to learn",
}


@pytest.mark.parametrize("name", _FAST)
def test_some_combinations(name, tmp_path):
    cell = next(cell for cell in _ALL if str(cell) == name)
    assert _FAST[name] in outcome(cell, tmp_path)


@pytest.fixture(scope="module")
def table(request):
    """Takes what came of each combination, and prints all of it in the end."""
    found = {}
    yield found
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        lines = [f"{cell}: {ending}" for cell, ending in found.items()]
        counts = [f"{count:5} {ending}" for ending, count in collections.Counter(found.values()).most_common()]
        print("\n" + "\n".join([*lines, *counts]))  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("cell", _ALL, ids=str)
def test_every_combination_is_exact_or_refused(cell, table, tmp_path):
    found = outcome(cell, tmp_path)
    table[cell] = found
    assert found == "exact" or found.startswith("refused: ")
