from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ViTImageProcessor

from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import TaskDataset, collate


def text_tasks(texts, labels=None, **settings):
    rows = {"user": ["u"] * len(texts), "text": texts, "label": labels or ["a"] * len(texts)}
    return TaskDataset.from_dataset(
        Dataset.from_dict(rows), task_column="user", text_column="text", label_column="label", **settings
    )


def lm_tasks(prompts, completions, **settings):
    rows = {"user": ["u"] * len(prompts), "prompt": prompts, "completion": completions}
    return TaskDataset.from_dataset(
        Dataset.from_dict(rows), task_column="user", prompt_column="prompt", completion_column="completion", **settings
    )


def word_tasks(words, tags, **settings):
    rows = {"user": ["u"] * len(words), "words": words, "tags": tags}
    return TaskDataset.from_dataset(
        Dataset.from_dict(rows), task_column="user", tokens_column="words", tags_column="tags", **settings
    )


def image_tasks(images, **settings):
    rows = {"user": ["u"] * len(images), "image": images, "label": [0] * len(images)}
    return TaskDataset.from_dataset(
        Dataset.from_dict(rows), task_column="user", image_column="image", label_column="label", **settings
    )


def shown(examples):
    return sorted(tuple(example["input_ids"].tolist()) for example in examples)


def test_text(tokenizer):
    encoded = text_tasks(["abc"], ["b"], label_names=["a", "b"]).encode("u", tokenizer)
    (example,) = encoded.train
    assert example["input_ids"].tolist() == tokenizer("abc")["input_ids"]
    assert example["attention_mask"].tolist() == [1, 1, 1]
    assert example["labels"].item() == 1
    assert {tensor.dtype for tensor in example.values()} == {torch.int64}
    assert (encoded.task_id, encoded.validation, encoded.cluster_key) == ("u", (), None)
    (short,) = text_tasks(["abc"], max_length=2).encode("u", tokenizer).train
    assert len(short["input_ids"]) == 2


def test_row_order_does_not_show(dataset, tokenizer):
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "validation_fraction": 0.3}
    one = TaskDataset.from_dataset(dataset, **columns)
    for seed in range(3):
        other = TaskDataset.from_dataset(dataset.shuffle(seed=seed), **columns)
        for task in one:
            a, b = one.encode(task, tokenizer), other.encode(task, tokenizer)
            assert a.digest == b.digest
            for left, right in zip(a.train + a.validation, b.train + b.validation, strict=True):
                assert all(torch.equal(left[name], right[name]) for name in left)


def test_other_tasks_do_not_show(dataset, tokenizer):
    columns = {"task_column": "user", "text_column": "text", "label_column": "label", "validation_fraction": 0.5}
    alone = TaskDataset.from_dataset(
        dataset.filter(lambda row: row["user"] == "u2"), **columns, label_names=["neg", "neutral", "pos"]
    )
    assert alone.encode("u2", tokenizer).digest == (
        TaskDataset.from_dataset(dataset, **columns).encode("u2", tokenizer).digest
    )


def test_digest_sees_content_labels_and_split(tokenizer):
    texts = ["a", "b", "c", "d"]
    digests = {
        tasks.encode("u", tokenizer).digest
        for tasks in (
            text_tasks(texts),
            text_tasks([*texts, "d"]),
            text_tasks(["a", "b", "c", "e"]),
            text_tasks(texts, ["x", "y", "x", "y"]),
            text_tasks(texts, validation_fraction=0.5),
        )
    }
    assert len(digests) == 5


def test_split_is_stable_when_a_row_comes(tokenizer):
    texts = [f"text {n}" for n in range(40)]
    before = text_tasks(texts, validation_fraction=0.25).encode("u", tokenizer)
    after = text_tasks(["new", *texts], validation_fraction=0.25).encode("u", tokenizer)
    assert (len(before.validation), len(after.validation)) == (10, 10)
    assert len(set(shown(before.validation)) & set(shown(after.validation))) >= 9
    assert not set(shown(before.train)) & set(shown(before.validation))
    assert sorted(shown(before.train) + shown(before.validation)) == sorted(
        tuple(tokenizer(text)["input_ids"]) for text in texts
    )
    other = text_tasks(texts, validation_fraction=0.25, split_seed=1).encode("u", tokenizer)
    assert shown(other.validation) != shown(before.validation)


@pytest.mark.parametrize(("rows", "fraction", "expected"), [(1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.3, 3)])
def test_split_leaves_a_training_example(tokenizer, rows, fraction, expected):
    tasks = text_tasks([f"{n}" for n in range(rows)], validation_fraction=fraction)
    encoded = tasks.encode("u", tokenizer)
    assert len(encoded.validation) == expected
    assert tasks.has_validation("u") == (expected > 0)
    assert len(encoded.train) == rows - expected


def test_equal_examples_are_a_multiset(tokenizer):
    one = text_tasks(["a", "a", "a", "b"], validation_fraction=0.5).encode("u", tokenizer)
    two = text_tasks(["b", "a", "a", "a"], validation_fraction=0.5).encode("u", tokenizer)
    assert one.digest == two.digest


def test_prompt_and_completion(tokenizer):
    (example,) = lm_tasks(["q{x}"], ["yes"], template="<{prompt}>").encode("u", tokenizer).train
    prompt, completion = tokenizer("<q{x}>")["input_ids"], [*tokenizer("yes")["input_ids"], tokenizer.eos_token_id]
    assert example["input_ids"].tolist() == prompt + completion
    assert example["labels"].tolist() == [-100] * len(prompt) + completion
    assert example["attention_mask"].tolist() == [1] * len(prompt + completion)


def test_no_eos_token_none_appended(make_tokenizer):
    tokenizer = make_tokenizer(eos=False)
    (example,) = lm_tasks(["q"], ["yes"]).encode("u", tokenizer).train
    assert tokenizer.decode(example["input_ids"]) == "qyes"


def test_labels_as_completions(tokenizer):
    tasks = text_tasks(["good"], ["pos"], kind="causal-lm", template="{prompt} ->")
    (example,) = tasks.encode("u", tokenizer).train
    assert tokenizer.decode(example["input_ids"]) == "good -> pos<eos>"
    assert (example["labels"] != -100).sum() == len(" pos") + 1
    assert tasks.num_labels == 1


def test_prompt_is_cut_from_the_left(tokenizer, bos_tokenizer):
    (example,) = lm_tasks(["0123456789"], ["yes"], max_length=7).encode("u", tokenizer).train
    assert tokenizer.decode(example["input_ids"]) == "789yes<eos>"
    (example,) = lm_tasks(["0123456789"], ["yes"], max_length=7).encode("u", bos_tokenizer).train
    assert bos_tokenizer.decode(example["input_ids"]) == "<bos>89yes<eos>"
    (example,) = lm_tasks(["0123456789"], ["yes, sir"], max_length=4).encode("u", bos_tokenizer).train
    assert bos_tokenizer.decode(example["input_ids"]) == "<bos>yes"
    assert example["labels"][0] == -100


def test_empty_prompt_needs_a_bos_token(tokenizer, bos_tokenizer):
    (example,) = lm_tasks([""], ["yes"]).encode("u", bos_tokenizer).train
    assert bos_tokenizer.decode(example["input_ids"]) == "<bos>yes<eos>"
    with pytest.raises(TaskDataError, match="the prompt '' tokenises to nothing"):
        lm_tasks([""], ["yes"]).encode("u", tokenizer)


def test_the_tokenizer_limit_is_the_default(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 5
    assert len(text_tasks(["0123456789"]).encode("u", tokenizer).train[0]["input_ids"]) == 5


def test_unusable_text(tokenizer):
    with pytest.raises(
        TaskDataError, match="Task 'u', column 'text', row 1: the cell is empty; each row needs a text"
    ):
        text_tasks(["a", ""])
    with pytest.raises(TaskDataError, match="Task 'u', column 'completion', row 0: the cell is empty"):
        lm_tasks(["q"], [""])
    with pytest.raises(TaskDataError, match="leaves no completion token"):
        lm_tasks(["q"], ["yes"], max_length=1).encode("u", tokenizer)
    with pytest.raises(TaskDataError, match="Task 'u', column 'completion', row 0: not a text but null"):
        lm_tasks(["q"], [None])
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        text_tasks(["a"]).encode("u", None)


def test_seq2seq_keeps_prompt_and_completion_apart(tokenizer, bos_tokenizer):
    settings = {"kind": "seq2seq-lm", "template": "<{prompt}>"}
    (example,) = lm_tasks(["q{x}"], ["yes"], **settings).encode("u", tokenizer).train
    assert tokenizer.decode(example["input_ids"]) == "<q{x}>"
    assert tokenizer.decode(example["labels"]) == "yes<eos>"
    assert example["attention_mask"].tolist() == [1] * len("<q{x}>")
    # Targets are what the tokenizer makes of them.
    (example,) = lm_tasks(["q"], ["yes"], **settings).encode("u", bos_tokenizer).train
    assert bos_tokenizer.decode(example["labels"]) == "<bos>yes<eos>"
    (example,) = text_tasks(["good"], ["pos"], kind="seq2seq-lm").encode("u", tokenizer).train
    assert tokenizer.decode(example["labels"]) == "pos<eos>"
    (example,) = lm_tasks(["012345"], ["456789"], kind="seq2seq-lm", max_length=4).encode("u", tokenizer).train
    assert (tokenizer.decode(example["input_ids"]), tokenizer.decode(example["labels"])) == ("0123", "4567")


def test_seq2seq_without_a_target(tokenizer):
    with pytest.raises(TaskDataError, match=r"row 0: the cell is empty"):
        lm_tasks(["q"], [""], kind="seq2seq-lm")
    with pytest.raises(TaskDataError, match="row 0: the prompt '' tokenises to nothing"):
        lm_tasks([""], ["yes"], kind="seq2seq-lm").encode("u", tokenizer)


def test_seq2seq_padding(tokenizer):
    examples = lm_tasks(["a", "abc"], ["wxyz", "v"], kind="seq2seq-lm").encode("u", tokenizer).train
    batch = collate(sorted(examples, key=lambda example: len(example["input_ids"])), tokenizer.pad_token_id)
    assert (batch["input_ids"] == tokenizer.pad_token_id).sum(1).tolist() == [2, 0]
    assert batch["attention_mask"].sum(1).tolist() == [1, 3]
    assert (batch["labels"] == -100).tolist() == [[False] * 5, [False, False, True, True, True]]


def test_the_first_token_of_a_word_carries_its_label(tokenizer, bos_tokenizer):
    tasks = word_tasks([["ab", "", "c"]], [["X", "O", "Y"]], label_names=["O", "X", "Y"])
    (example,) = tasks.encode("u", tokenizer).train
    assert example["input_ids"].tolist() == tokenizer("abc")["input_ids"]
    assert example["labels"].tolist() == [1, -100, 2]  # nothing stands for the empty word
    (example,) = tasks.encode("u", bos_tokenizer).train
    assert example["labels"].tolist() == [-100, 1, -100, 2]
    (example,) = word_tasks([["ab", "c"]], [["X", "X"]], max_length=2).encode("u", bos_tokenizer).train
    assert example["labels"].tolist() == [-100, 0]
    with pytest.raises(TaskDataError, match=r"column 'words', row 0: the words \['a'\] tokenise to nothing"):
        word_tasks([["a"]], [["X"]], max_length=1).encode("u", bos_tokenizer)


def test_a_slow_tokenizer_knows_no_words(tmp_path):
    from transformers import CanineTokenizer

    with pytest.raises(RecipeError, match=r"needs a fast tokenizer.*found the slow CanineTokenizer"):
        word_tasks([["a"]], [["X"]]).encode("u", CanineTokenizer())


def test_images_as_they_are():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    (example,) = image_tasks([array.tolist()]).encode("u", None).train
    assert example["pixel_values"].dtype == torch.float32
    assert torch.equal(example["pixel_values"], torch.from_numpy(array)[None])
    assert example["labels"].item() == 0
    colour = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    expected = torch.from_numpy(colour.transpose(2, 0, 1).astype(np.float32))
    for image in (colour.tolist(), colour.transpose(2, 0, 1).tolist(), Image.fromarray(colour)):
        assert torch.equal(image_tasks([image]).encode("u", None).train[0]["pixel_values"], expected)


@pytest.mark.parametrize("as_pil", [True, False])
def test_images_through_a_processor(as_pil):
    processor = ViTImageProcessor(size={"height": 6, "width": 6})
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (example,) = image_tasks([Image.fromarray(grey) if as_pil else grey.tolist()]).encode("u", processor).train
    rgb = Image.fromarray(grey).convert("RGB")
    expected = processor(images=rgb, return_tensors="pt")["pixel_values"][0]
    assert example["pixel_values"].shape == (3, 6, 6)
    torch.testing.assert_close(example["pixel_values"], expected)


def test_unusable_images():
    good = [[0.0, 1.0], [1.0, 0.0]]
    for bad, message in [
        ([[0.0, float("nan")], [1.0, 0.0]], "row 1: the image holds NaN"),
        ([[0.0, float("inf")], [1.0, 0.0]], "row 1: the image holds NaN or infinite"),
        ([[0.0], [1.0, 0.0]], "row 1: the image has rows of different lengths"),
        (None, "row 1: the image is null"),
        ([], r"row 1: expected a PIL image or numbers of shape"),
        ([[0.0, 1.0]], r"row 1: image of shape \(1, 1, 2\), but the task's first has \(1, 2, 2\)"),
    ]:
        with pytest.raises(TaskDataError, match=f"Task 'u', column 'image', {message}"):
            image_tasks([good, bad]).encode("u", None)


def test_collate():
    examples = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.int64), "labels": labels}
        for ids, labels in (([5, 6, 7], torch.tensor([-100, 6, 7])), ([8], torch.tensor([8])))
    ]
    batch = collate(examples, 9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert collate(examples, 9, padding_side="left")["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    with pytest.raises(RecipeError, match="no pad_token_id"):
        collate(examples, None)
    with pytest.raises(RecipeError, match="padding_side"):
        collate(examples, 9, padding_side="up")
    images = [{"pixel_values": torch.zeros(1, 2, 2), "labels": torch.tensor(n)} for n in range(3)]
    batch = collate(images, None)
    assert batch["pixel_values"].shape == (3, 1, 2, 2)
    assert batch["labels"].tolist() == [0, 1, 2]
