"""The table of task kinds: what a kind means for columns, heads, pipelines, metrics and losses.

Everything else asks this table. A new kind is one entry here (or one `register_kind` from outside) and its encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["KindTraits", "TaskKind", "register_kind", "task_kinds", "traits_of"]

TaskKind = Literal[
    "sequence-classification", "causal-lm", "seq2seq-lm", "token-classification", "image-classification"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class KindTraits:
    """What follows from the kind of a task.

    Args:
        name (`str`): the kind, as recipes and saved models name it.
        columns (*tuple* of *frozenset* of `str`): the fields of `TaskSpec` that describe an example. One of these sets
            must be given, and no other content column but optional ones.
        optional_columns (*frozenset* of `str`): the fields of `TaskSpec` that may be given beside them.
        usual_columns (*mapping* of `str` to `str`): the names of these columns by default.
        shown_by (*tuple* of `str`): a recipe without a kind has this one if it gives one of these columns; a kind
            without them must be named.
        auto_class (`str`): the Auto class of transformers that loads its models.
        pipeline (`str`): the task of transformers' pipeline for it, which is also the tag on the Hub.
        peft_task (`str`, *optional*): what PEFT calls it (`task_type`).
        metric (`str`): what measures it: `"accuracy"` or `"answer_probability"`.
        reads (`str`): what the model reads: `"text"`, `"words"` (a list of them) or `"image"`.
        labels (`str`): what it learns: one label for each `"example"`, one for each of its `"words"`, the
            `"next_tokens"` of the text that it reads, or the text that a `"decoder"` of its own writes.
    """

    name: str
    columns: tuple[frozenset[str], ...]
    optional_columns: frozenset[str] = field(default=frozenset())
    usual_columns: Mapping[str, str]
    shown_by: tuple[str, ...] = field(default=())
    auto_class: str
    pipeline: str
    peft_task: str | None = None
    metric: Literal["accuracy", "answer_probability"]
    reads: Literal["text", "words", "image"]
    labels: Literal["example", "words", "next_tokens", "decoder"]

    @property
    def takes_conversations(self) -> bool:
        """Whether its rows may be lists of messages."""
        return any("messages_column" in names for names in self.columns)

    @property
    def writes_text(self) -> bool:
        """Whether the model answers with a text, and has no head with labels."""
        return self.labels in ("next_tokens", "decoder")


_TEXT_AND_LABEL = frozenset({"text_column", "label_column"})
_PROMPT_AND_COMPLETION = frozenset({"prompt_column", "completion_column"})

KINDS: dict[str, KindTraits] = {}


def register_kind(traits: KindTraits) -> None:
    """Add a kind of task; `encoder_for` registers how its rows become tensors.

    Args:
        traits (`KindTraits`): all that follows from the kind.

    Raises:
        ValueError: if there is a kind of this name.
    """
    if traits.name in KINDS:
        raise ValueError(f"There is a kind {traits.name!r} already; give yours another name.")
    KINDS[traits.name] = traits


def task_kinds() -> tuple[str, ...]:
    """Return the names of all kinds."""
    return tuple(KINDS)


def traits_of(kind: str) -> KindTraits:
    """Return what follows from a kind.

    Raises:
        KeyError: if there is no such kind; a `TaskSpec` has checked its own.
    """
    return KINDS[kind]


register_kind(
    KindTraits(
        name="sequence-classification",
        columns=(_TEXT_AND_LABEL,),
        usual_columns={"text_column": "text", "label_column": "label"},
        shown_by=("text_column",),
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        peft_task="SEQ_CLS",
        metric="accuracy",
        reads="text",
        labels="example",
    )
)
register_kind(
    KindTraits(
        name="causal-lm",
        columns=(_PROMPT_AND_COMPLETION, _TEXT_AND_LABEL, frozenset({"messages_column"})),
        optional_columns=frozenset({"tools_column"}),
        usual_columns={"prompt_column": "prompt", "completion_column": "completion"},
        shown_by=("prompt_column", "completion_column", "messages_column"),
        auto_class="AutoModelForCausalLM",
        pipeline="text-generation",
        peft_task="CAUSAL_LM",
        metric="answer_probability",
        reads="text",
        labels="next_tokens",
    )
)
register_kind(
    KindTraits(
        name="seq2seq-lm",
        columns=(_PROMPT_AND_COMPLETION, _TEXT_AND_LABEL),
        usual_columns={"prompt_column": "prompt", "completion_column": "completion"},
        auto_class="AutoModelForSeq2SeqLM",
        pipeline="text2text-generation",
        peft_task="SEQ_2_SEQ_LM",
        metric="answer_probability",
        reads="text",
        labels="decoder",
    )
)
register_kind(
    KindTraits(
        name="token-classification",
        columns=(frozenset({"tokens_column", "tags_column"}),),
        usual_columns={"tokens_column": "tokens", "tags_column": "tags"},
        shown_by=("tokens_column", "tags_column"),
        auto_class="AutoModelForTokenClassification",
        pipeline="token-classification",
        peft_task="TOKEN_CLS",
        metric="accuracy",
        reads="words",
        labels="words",
    )
)
register_kind(
    KindTraits(
        name="image-classification",
        columns=(frozenset({"image_column", "label_column"}),),
        usual_columns={"image_column": "image", "label_column": "label"},
        shown_by=("image_column",),
        auto_class="AutoModelForImageClassification",
        pipeline="image-classification",
        metric="accuracy",
        reads="image",
        labels="example",
    )
)
