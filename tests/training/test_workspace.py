from __future__ import annotations

import pytest
import torch

from hf_clamu.errors import RecipeError
from hf_clamu.training import LiveModel, Workspace, trainable_names
from hf_clamu.training.batching import chunks, sample_batches


def test_trainable_names_are_sorted_and_tied_weights_appear_once(build):
    model = build["gpt2"]()
    assert model.lm_head.weight is model.transformer.wte.weight
    names = trainable_names(model, ())
    assert names == sorted(name for name, _ in model.named_parameters())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


def test_frozen_patterns_and_parameters_without_gradient_stay_out(build):
    model = build["vit"]()
    model.classifier.bias.requires_grad_(False)
    names = trainable_names(model, ["vit.embeddings.*", "*.layernorm_before.weight"])
    everything = {name for name, _ in model.named_parameters()}
    left_out = everything - set(names)
    assert left_out == {
        name
        for name in everything
        if name.startswith("vit.embeddings.") or name.endswith("layernorm_before.weight") or name == "classifier.bias"
    }
    assert len(left_out) >= 5


def test_integer_parameters_stay_out():
    model = torch.nn.Linear(2, 2)
    model.table = torch.nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    assert trainable_names(model, ()) == ["bias", "weight"]


def test_an_unmatched_pattern_is_refused(build):
    with pytest.raises(RecipeError, match=r"freeze='vit\.wte\.\*' matches no parameter.*names look like vit\."):
        trainable_names(build["vit"](), ["classifier.*", "vit.wte.*"])


def test_nothing_left_to_train_is_refused(build):
    with pytest.raises(RecipeError, match="No parameter is left to train"):
        trainable_names(build["vit"](), ["*"])


def _bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_load_and_reset(build):
    model = build["vit"]()
    before = _bits(model)
    workspace = Workspace(model, freeze=["classifier.bias"])
    weights = {name: theta + 1 for name, theta in workspace.theta_0.items()}
    workspace.load(weights)
    assert all(torch.equal(workspace.parameters[name], weights[name]) for name in weights)
    assert torch.equal(model.classifier.bias, before["classifier.bias"])
    assert not _same(_bits(model), before)
    workspace.reset()
    assert _same(_bits(model), before)
    assert workspace.num_parameters == sum(p.numel() for p in model.parameters()) - 10
    assert workspace.shapes["classifier.weight"] == (10, 16)
    assert list(workspace.shapes) == sorted(workspace.shapes)


def test_release_leaves_the_model_as_it_came(build):
    model = build["vit"]()
    model.classifier.bias.requires_grad_(False)
    before = _bits(model)
    workspace = Workspace(model, freeze=["vit.embeddings.*"])
    assert not model.vit.embeddings.cls_token.requires_grad
    assert not any(p.requires_grad for p in model.vit.embeddings.parameters())
    workspace.load({name: theta * 2 for name, theta in workspace.theta_0.items()})
    model.train()
    workspace.release()
    assert _same(_bits(model), before)
    assert model.vit.embeddings.cls_token.requires_grad
    assert not model.classifier.bias.requires_grad
    assert not model.training


def test_memory_is_taken_when_something_trains_and_given_back(build):
    model = build["vit"]()
    before, came = _bits(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    workspace = Workspace(model)
    base = {name: theta.data_ptr() for name, theta in workspace.theta_0.items()}
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == base
    assert all(base[name] != came[name] for name in base), "the file that weights come from may change"
    # Whatever was called before.
    with workspace.training():
        assert all(p.data_ptr() != base[name] for name, p in workspace.parameters.items())
        for parameter in workspace.parameters.values():
            parameter.data.add_(1)
    workspace.release()
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == base
    assert _same(_bits(model), before)


def test_batch_norm_statistics_do_not_move_while_training(build, encoded):
    model = build["resnet"]()
    workspace = Workspace(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    batch = workspace.batch(next(iter(encoded.values())).train[:4])
    with workspace.training():
        assert model.training
        workspace.forward(batch).loss.backward()
        assert all(p.grad is not None for p in workspace.parameters.values())
    assert not model.training
    assert all(p.grad is None for p in workspace.parameters.values())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    # The check can fail: without the context they move.
    model.train()
    workspace.forward(batch)
    assert not all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_training_ends_after_an_exception(vit):
    def fail() -> None:
        with vit.training():
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert not vit.model.training


def test_bf16_runs_the_forward_pass_alone_in_bfloat16(build, encoded):
    live = LiveModel(build["vit"](), bf16=True)
    output = live.forward(live.batch(next(iter(encoded.values())).train[:2]))
    assert output.logits.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in live.model.parameters())


def test_full_batches_are_the_examples_themselves():
    examples = tuple(range(4))
    for size in (4, 9):
        batches = list(sample_batches(examples, size, 3, seed=1))
        assert [batch is examples for batch in batches] == [True] * 3


def test_every_epoch_covers_all_examples():
    batches = list(sample_batches(range(10), 4, 9, seed=1))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[i for batch in batches[start : start + 3] for i in batch] for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_depend_on_the_seed_alone():
    first = list(sample_batches(range(10), 3, 7, seed=1))
    torch.rand(5)
    assert list(sample_batches(range(10), 3, 7, seed=1)) == first
    assert list(sample_batches(range(10), 3, 7, seed=2)) != first
    assert list(sample_batches(range(10), 3, 5, seed=1)) == first[:5]


def test_chunks_keep_the_order():
    assert [list(part) for part in chunks(range(5), 2)] == [[0, 1], [2, 3], [4]]
