"""What users of transformers do with a model, against a plain checkpoint of the cluster that is selected."""

from __future__ import annotations

import copy
import shutil

import accelerate
import pytest
import torch
import torch._dynamo.testing
import transformers

from hf_clamu import CheckpointFormatError, ClamuModel, WeightsChangedError
from hf_clamu.training import seeded

HEADS = {
    "text": transformers.AutoModelForSequenceClassification,
    "lm": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "words": transformers.AutoModelForTokenClassification,
    "image": transformers.AutoModelForImageClassification,
}
IDS = torch.tensor([[103, 114, 101, 97, 116, 32], [100, 117, 108, 108, 32, 49]])
LABELS = {
    "text": torch.tensor([1, 2]),
    "lm": IDS,
    "seq2seq": IDS,
    "words": torch.tensor([[0, 1, 0, 1, 0, 1]] * 2),
    "image": torch.tensor([3, 4]),
}


def _inputs(kind):
    if kind == "image":
        return {"pixel_values": torch.arange(128.0).reshape(2, 1, 8, 8) % 17, "labels": LABELS[kind]}
    return {"input_ids": IDS, "labels": LABELS[kind]}


def _weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture
def pair(saved_kind, exported):
    """Gives a model with a cluster selected, and the plain checkpoint of that cluster."""

    def pair_of(kind, cluster=1, **options):
        model = ClamuModel.from_pretrained(saved_kind(kind), cluster=cluster, **options)
        return model, HEADS[kind].from_pretrained(exported(kind, cluster), **options)

    return pair_of


def _refuses(model, folder):
    for act in (
        lambda: model.set_cluster(0),
        lambda: model.set_base(),
        lambda: model.save_pretrained(folder / "refused"),
        lambda: model.export(folder / "refused"),
    ):
        with pytest.raises(WeightsChangedError, match=r"ClamuModel.from_pretrained"):
            act()
    assert not (folder / "refused").exists()


# -- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_a_model_says_of_itself_what_a_plain_one_says(kind, pair):
    model, plain = pair(kind)
    assert _same(_weights(model), _weights(plain))
    assert isinstance(model, type(plain))
    for trainable in (False, True):
        assert model.num_parameters(only_trainable=trainable) == plain.num_parameters(only_trainable=trainable)
    assert model.get_memory_footprint() == plain.get_memory_footprint()
    assert (model.training, model.dtype, model.device) == (plain.training, plain.dtype, plain.device)
    assert model.can_generate() == plain.can_generate()
    assert repr(model) == repr(plain)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert type(model.get_input_embeddings()) is type(plain.get_input_embeddings())
    found, expected = model(**_inputs(kind)), plain(**_inputs(kind))
    assert found.keys() == expected.keys()
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("kind", ["lm", "seq2seq"])
def test_tied_weights_stay_tied(kind, pair):
    model, plain = pair(kind, 0)
    for cluster in (1, None, 0):
        model.set_cluster(cluster)
        model.tie_weights()
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert _same(_weights(model), _weights(plain))


# -- training --------------------------------------------------------------------------------------------------------


def _trainer(model, kind, folder, **options):
    inputs = _inputs(kind)
    rows = [{name: value[index] for name, value in inputs.items()} for index in (0, 1, 0, 1, 1, 0)]
    settings = {"max_steps": 3, "learning_rate": 1e-2, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=2, **{**settings, **options}
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:2])


@pytest.mark.parametrize("kind", HEADS)
def test_the_trainer_trains_it_as_a_plain_model(kind, pair, tmp_path):
    model, plain = pair(kind)
    trained = []
    for each in (model, plain):
        trainer = _trainer(each, kind, tmp_path)
        before = trainer.evaluate()["eval_loss"]
        found = trainer.train()
        trained.append((before, found.training_loss, trainer.evaluate()["eval_loss"], _weights(each)))
    assert trained[0][:3] == trained[1][:3]
    assert trained[0][2] < trained[0][0]
    assert _same(trained[0][3], trained[1][3])
    _refuses(model, tmp_path)
    # What is left is a plain model, which the class of the base saves.
    type(plain).save_pretrained(model, tmp_path / "plain")
    assert _same(_weights(HEADS[kind].from_pretrained(tmp_path / "plain")), trained[1][3])


def test_what_the_trainer_trained_is_saved_as_a_plain_model(pair, saved_kind, tiny, tmp_path):
    model, _ = pair("text")
    trainer = _trainer(model, "text", tmp_path / "runs", save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path / "runs/checkpoint-3"):
        assert _same(_weights(HEADS["text"].from_pretrained(folder)), _weights(model))
        with pytest.raises(CheckpointFormatError):
            ClamuModel.from_pretrained(folder)
    # Not over a merged model, and not where its owner saves it.
    shutil.copytree(saved_kind("text"), tmp_path / "merged")
    with pytest.raises(WeightsChangedError, match="export it first"):
        trainer.save_model(tmp_path / "merged")
    assert tiny.digests(tmp_path / "merged") == tiny.digests(saved_kind("text"))
    _refuses(model, tmp_path)


def test_the_trainer_saves_and_evaluates_what_it_has_not_trained(pair, tiny, saved_kind, tmp_path):
    model, plain = pair("text")
    trainer = _trainer(model, "text", tmp_path / "runs")
    trainer.processing_class = model.processor
    assert trainer.evaluate()["eval_loss"] == _trainer(plain, "text", tmp_path / "runs").evaluate()["eval_loss"]
    trainer.save_model(tmp_path / "model")
    again = ClamuModel.from_pretrained(tmp_path / "model", cluster=1)
    assert _same(_weights(again), _weights(plain))
    again.save_pretrained(tmp_path / "model")
    (tmp_path / "model/training_args.bin").unlink()
    assert tiny.digests(tmp_path / "model") == tiny.digests(saved_kind("text"))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_moves_nothing_does_no_harm(fused, pair, exported):
    model, _ = pair("text")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused)
    model(**_inputs("text")).loss.backward()
    optimizer.step()
    model.set_cluster(0)
    assert _same(_weights(model), _weights(HEADS["text"].from_pretrained(exported("text", 0))))


@pytest.mark.parametrize("kind", HEADS)
def test_gradient_checkpointing_changes_no_gradient(kind, pair):
    model, plain = pair(kind)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    for each in (model, plain):
        each.train()
        with seeded(3):  # the same dropout
            each(**_inputs(kind)).loss.backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)
    # Reading gradients changes no weight.
    model.set_cluster(0)


def test_accelerate_prepares_and_unwraps_it(pair, exported):
    model, _ = pair("text")
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    assert accelerator.unwrap_model(prepared).set_cluster(0) is model
    assert _same(_weights(prepared), _weights(HEADS["text"].from_pretrained(exported("text", 0))))


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lm", "seq2seq"])
def test_generate_writes_what_a_plain_model_writes(kind, saved_kind, exported):
    model = ClamuModel.from_pretrained(saved_kind(kind))
    written = {}
    ways = {
        "greedy": {"do_sample": False},
        "beams": {"num_beams": 3, "num_return_sequences": 2},
        "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 50},
        "no cache": {"do_sample": False, "use_cache": False},
    }
    for cluster in (0, 2, None):
        plain = HEADS[kind].from_pretrained(exported(kind, cluster))
        model.set_cluster(cluster)
        assert model.generation_config.to_diff_dict() == plain.generation_config.to_diff_dict()
        for name, options in ways.items():
            options = {**options, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 6}
            with seeded(7):
                expected = plain.generate(IDS, **options)
            with seeded(7):
                written[cluster, name] = model.generate(IDS, **options).tolist()
            assert written[cluster, name] == expected.tolist()
    assert written[0, "greedy"] != written[2, "greedy"]
    assert written[0, "sampling"] != written[0, "greedy"]


# -- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_a_compiled_model_follows_the_cluster(how, pair, exported):
    model, _ = pair("text")
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    if how == "torch.compile":
        compiled = torch.compile(model, backend=counter)
    else:
        model.compile(backend=counter)
        compiled = model
    frames = []
    with torch.no_grad():
        for cluster in (1, 0, None, 2, 1):
            compiled.set_cluster(cluster)
            plain = HEADS["text"].from_pretrained(exported("text", cluster))
            assert torch.equal(compiled(IDS).logits, plain(IDS).logits)
            frames.append(counter.frame_count)
    # In place: nothing is compiled anew.
    assert len(set(frames)) == 1
    assert frames[0] >= 1
    torch._dynamo.reset()


# -- types, places and sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_another_type_is_served_as_a_plain_model_loaded_in_it(kind, dtype, saved_kind, exported):
    model = ClamuModel.from_pretrained(saved_kind(kind), dtype=dtype)
    for cluster in (1, None, 0):
        model.set_cluster(cluster)
        assert _same(_weights(model), _weights(HEADS[kind].from_pretrained(exported(kind, cluster), dtype=dtype)))
    assert model.config.dtype == dtype


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.to(torch.float16),
        lambda model: model.half().float(),
    ],
    ids=["half", "bfloat16", "double", "to", "half and back"],
)
def test_a_cast_model_answers_but_does_not_switch(cast, pair, tmp_path):
    model, plain = pair("text")
    found, expected = cast(model)(IDS).logits, cast(plain)(IDS).logits
    assert torch.equal(found, expected)
    _refuses(model, tmp_path)


def test_casts_to_its_own_type_and_moves_in_place_are_none(pair, exported):
    model, _ = pair("text")
    assert model.to(torch.float32).to("cpu").float().cpu() is model
    model.double().float()  # and back without loss
    model.set_cluster(0)
    assert _same(_weights(model), _weights(HEADS["text"].from_pretrained(exported("text", 0))))


@pytest.mark.parametrize("device_map", ["auto", "balanced", "balanced_low_0", "sequential", "cpu", {"": "cpu"}])
def test_device_maps(device_map, saved_kind, exported):
    model = ClamuModel.from_pretrained(saved_kind("text"), device_map=device_map, cluster=2)
    plain = HEADS["text"].from_pretrained(exported("text", 2)).to(model.device)
    assert _same(_weights(model), _weights(plain))


def test_loading_and_switching_in_inference_mode(saved_kind, exported):
    with torch.inference_mode():
        model = ClamuModel.from_pretrained(saved_kind("text"), cluster=1)
        model.set_cluster(2)
        assert torch.equal(model(IDS).logits, HEADS["text"].from_pretrained(exported("text", 2))(IDS).logits)
    model.set_cluster(0)
    assert _same(_weights(model), _weights(HEADS["text"].from_pretrained(exported("text", 0))))


@pytest.mark.parametrize("size", [300, 200])
@pytest.mark.parametrize("kind", ["lm", "text"])
def test_resized_embeddings_answer_but_do_not_switch(kind, size, pair, tmp_path):
    model, plain = pair(kind)
    for each in (model, plain):
        with seeded(5):
            each.resize_token_embeddings(size, mean_resizing=False)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    _refuses(model, tmp_path)
    model.resize_token_embeddings(257, mean_resizing=False)
    if size < 257:
        _refuses(model, tmp_path)  # what was cut off is lost
    else:
        model.set_cluster(0)  # all weights are back


def test_embeddings_of_the_same_size_are_left_alone(pair, exported):
    model, _ = pair("lm")
    model.resize_token_embeddings(257)
    model.set_cluster(0)
    assert _same(_weights(model), _weights(HEADS["lm"].from_pretrained(exported("lm", 0))))


@pytest.mark.parametrize("kind", HEADS)
def test_a_deepcopy_is_a_model_of_its_own(kind, pair, exported):
    model, plain = pair(kind)
    other = copy.deepcopy(model).set_cluster(0)
    assert _same(_weights(model), _weights(plain))
    assert _same(_weights(other), _weights(HEADS[kind].from_pretrained(exported(kind, 0))))
    other.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in model.parameters())


# -- saving ----------------------------------------------------------------------------------------------------------


def test_what_tools_pass_to_save_pretrained(pair, tiny, saved_kind, tmp_path):
    model, _ = pair("text")
    model.save_pretrained(
        tmp_path / "m",
        is_main_process=True,
        state_dict=model.state_dict(),
        save_function=torch.save,
        max_shard_size="50GB",
        safe_serialization=True,
        token=None,
        variant=None,
    )
    assert tiny.digests(tmp_path / "m") == tiny.digests(saved_kind("text"))
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(TypeError, match="does not know the option 'variant'"):
        model.save_pretrained(tmp_path / "other", variant="fp16")
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_is_saved_over_the_same(pair, tiny, saved_kind, tmp_path):
    model, _ = pair("text")
    model.save_pretrained(tmp_path / "m")
    model.processor(["great", "dull one"], padding=True, truncation=True, max_length=3)
    model.processor.save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") != tiny.digests(saved_kind("text"))
    model = ClamuModel.from_pretrained(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    assert tiny.digests(tmp_path / "m") == tiny.digests(saved_kind("text"))
