"""Words with labels, and encoder-decoders: rows to tensors, checks, measuring and answers."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from hf_clamu.base_models.byte_tokenizer import byte_tokenizer
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.tasks import TaskDataset, TaskSpec, collate
from hf_clamu.training import LiveModel, measure

WORDS = {"task_column": "user", "tokens_column": "words", "tags_column": "tags"}
PAIRS = {"task_column": "user", "prompt_column": "question", "completion_column": "answer", "kind": "seq2seq-lm"}


def _words(words, tags):
    return Dataset.from_dict({"user": ["a"] * len(words), "words": words, "tags": tags})


def _pairs(*pairs):
    return Dataset.from_dict(
        {"user": ["a"] * len(pairs), "question": [q for q, _ in pairs], "answer": [a for _, a in pairs]}
    )


def _encoded(tasks):
    return tasks.encode("a", byte_tokenizer()).train


def test_the_first_token_of_a_word_has_its_label():
    tasks = TaskDataset.from_dataset(_words([["ab", "c"], ["d"]], [["X", "O"], ["O"]]), **WORDS)
    assert tasks.spec.kind == "token-classification"
    assert tasks.spec.label_names == ("O", "X")
    by_length = sorted(_encoded(tasks), key=lambda example: len(example["input_ids"]))
    words = byte_tokenizer()(["ab", "c"], is_split_into_words=True)
    assert by_length[1]["input_ids"].tolist() == words["input_ids"]
    first = {word: number for number, word in reversed(list(enumerate(words.word_ids())))}
    marks = by_length[1]["labels"].tolist()
    assert [marks[first[0]], marks[first[1]]] == [1, 0]
    assert all(mark == -100 for number, mark in enumerate(marks) if number not in first.values())
    batch = collate(by_length, 0)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][0, -1] == -100


def test_a_class_label_column_names_the_tags():
    features = Features(
        {"user": Value("string"), "words": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=["O", "B"]))}
    )
    rows = Dataset.from_dict({"user": ["a"] * 2, "words": [["x"], ["y"]], "tags": [[1], [0]]}, features=features)
    assert TaskDataset.from_dataset(rows, **WORDS).spec.label_names == ("O", "B")


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a"], ["b", "c"]], [["O"], ["O"]], "Task 'a', column 'tags', row 1: 1 labels for 2 words"),
        ([["a"], []], [["O"], []], "Task 'a', column 'words', row 1: the list of words is empty"),
        ([["a"], ["b"]], [["O"], [None]], "Task 'a', column 'tags', row 1: the label is null"),
        ([["a"], ["b"]], [[0], [-1]], "Task 'a', column 'tags', row 1: label -1: labels are numbered from 0"),
    ],
)
def test_bad_words_name_task_column_and_row(words, tags, message):
    with pytest.raises(TaskDataError, match=message):
        TaskDataset.from_dataset(_words(words, tags), **WORDS)


def test_words_that_tokenise_to_nothing_are_refused():
    tasks = TaskDataset.from_dataset(_words([["a"], [""]], [["O"], ["O"]]), **WORDS)
    with pytest.raises(TaskDataError, match=r"row 1: the words .* tokenise to nothing"):
        _encoded(tasks)


def test_words_need_a_tokenizer_that_knows_them():
    class Slow:
        is_fast = False

    tasks = TaskDataset.from_dataset(_words([["a"], ["b"]], [["O"], ["O"]]), **WORDS)
    with pytest.raises(RecipeError, match="needs a fast tokenizer"):
        tasks.encode("a", Slow())


def test_source_and_target_are_apart():
    tasks = TaskDataset.from_dataset(_pairs(("hi", "yes"), ("hello", "no")), **PAIRS, template="Q: {prompt}")
    tokenizer = byte_tokenizer()
    sources = {tokenizer.decode(e["input_ids"]): e["labels"].tolist() for e in _encoded(tasks)}
    end = [tokenizer.eos_token_id]
    assert sources == {
        "Q: hi": tokenizer("yes")["input_ids"] + end,
        "Q: hello": tokenizer("no")["input_ids"] + end,
    }


def test_labels_are_targets_by_their_names():
    rows = Dataset.from_dict({"user": ["a", "a"], "text": ["x", "y"], "label": ["good", "bad"]})
    tasks = TaskDataset.from_dataset(
        rows, task_column="user", text_column="text", label_column="label", kind="seq2seq-lm"
    )
    tokenizer = byte_tokenizer()
    found = {tokenizer.decode(e["labels"], skip_special_tokens=True) for e in _encoded(tasks)}
    assert found == {"good", "bad"}


@pytest.mark.parametrize(
    ("pair", "message"), [(("", "x"), "the prompt .*tokenises to nothing"), (("x", ""), "the cell is empty")]
)
def test_empty_sources_and_targets_are_refused(pair, message):
    with pytest.raises(TaskDataError, match=rf"row 1: {message}"):
        _encoded(TaskDataset.from_dataset(_pairs(("a", "b"), pair), **PAIRS))


def test_prompts_alone_make_a_causal_model():
    columns = {key: value for key, value in PAIRS.items() if key != "kind"}
    assert TaskSpec.from_dict(columns).kind == "causal-lm"
    assert TaskSpec.from_dict(WORDS).kind == "token-classification"


def test_a_seq2seq_score_is_the_probability_of_the_target():
    import transformers

    config = transformers.T5Config(
        vocab_size=258,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    examples = _encoded(TaskDataset.from_dataset(_pairs(("hi", "yes"), ("hello", "o")), **PAIRS))
    found = measure(LiveModel(model), examples, "seq2seq-lm")
    losses = []
    for example in examples:
        with torch.no_grad():
            losses.append(model(**{key: value[None] for key, value in example.items()}).loss.item())
    assert found.loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert found.score == pytest.approx(sum(math.exp(-loss) for loss in losses) / 2, rel=1e-5)


def test_a_word_score_counts_words():
    import transformers

    config = transformers.BertConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(config).eval()
    tasks = TaskDataset.from_dataset(_words([["ab", "c", "d"], ["d"]], [["X", "O", "X"], ["O"]]), **WORDS)
    shares = []
    for example in _encoded(tasks):
        with torch.no_grad():
            guess = model(input_ids=example["input_ids"][None]).logits[0].argmax(-1)
        counted = example["labels"] != -100
        shares.append((guess[counted] == example["labels"][counted]).float().mean().item())
    assert measure(LiveModel(model), _encoded(tasks), tasks.spec.kind).score == pytest.approx(sum(shares) / 2)
