"""What the columns of a data set mean: `TaskSpec`, the part of a recipe that turns rows into tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from hf_clamu.errors import RecipeError
from hf_clamu.known_names import hint_for, refuse_unknown_keys
from hf_clamu.tasks.kinds import TaskKind, task_kinds, traits_of

__all__ = ["IdsSetting", "IncompleteRows", "TaskSpec", "infer_kind", "is_template"]

IdsSetting = Literal["strict", "as-is", "strip"]
IncompleteRows = Literal["error", "skip"]

_PROMPT_SLOT = "{prompt}"
_ALL_CONTENT_COLUMNS = (
    *("text_column", "prompt_column", "completion_column", "image_column", "label_column"),
    *("tokens_column", "tags_column", "messages_column", "tools_column"),
)
# Fields that came after the first saved models: written only where they are set, so that recipes without them keep
# their bytes.
_CONVERSATION_FIELDS = ("tools_column", "chat_template", "assistant_only_loss", "completion_only_loss")
_LATER_FIELDS = (
    *("tokens_column", "tags_column", "ids", "incomplete_rows", "messages_column", "conversational"),
    *_CONVERSATION_FIELDS,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """Which column is which, and how rows become tokenised examples.

    Args:
        kind (`str`): "sequence-classification", "causal-lm", "seq2seq-lm", "token-classification" or
            "image-classification".
        task_column (`str`): the column of task ids (strings).
        text_column, prompt_column, completion_column, image_column, label_column (`str`, *optional*):
            The content of an example: text and label, prompt and completion, or image and label. With
            `kind="causal-lm"`, text and label mean prompt = text and completion = " " + label name; with
            `kind="seq2seq-lm"`, whose decoder starts a new text, completion = label name.
        tokens_column, tags_column (`str`, *optional*): lists of words and lists of their labels, equally long
            (token-classification).
        id_column (`str`, *optional*): unique example ids; a duplicate raises when the data are read.
        cluster_column (`str`, *optional*): a cluster key, the same in all rows of a task.
        label_names (*tuple* of `str`, *optional*): the whole label space, whichever tasks are present.
        template (`str`, defaults to `"{prompt}"`): text around the prompt of a language model.
        max_length (`int`, *optional*): tokens per example (for seq2seq-lm of the prompt, and of the completion); by
            default what the tokenizer says the model holds.
        validation_fraction (`float` in [0, 1), defaults to 0): part of each task kept out of training.
        split_seed (`int`, defaults to 0): seed of that choice.
        ids (`str`, defaults to `"strict"`): `"strict"` refuses task ids that differ in white space, case, Unicode form
            or leading zeros alone: they are mostly one owner's. `"strip"` first removes white space at the ends of
            ids; `"as-is"` takes all ids as they are.
        incomplete_rows (`str`, defaults to `"error"`): `"error"` refuses rows whose task id or content is empty,
            `"skip"` leaves rows out where the cell of the task, of what is read, or of what is learned is empty or
            white space.
        messages_column (`str`, *optional*): lists of messages, each with role and content (causal-lm), instead of
            prompts and completions; the columns of these may hold lists of messages, too.
        tools_column (`str`, *optional*): of conversations, the tools (JSON schemas) that they may use; cells may be
            empty.
        chat_template (`str`, *optional*): of conversations, the text of a Jinja template; by default the tokenizer's.
            In recipes and `TaskDataset.from_dataset` also the path of a file that has it.
        assistant_only_loss (`bool`, defaults to `False`): of conversations, learn the assistant's turns alone: what
            stands between `{% generation %}` and `{% endgeneration %}` in the template.
        completion_only_loss (`bool`, *optional*): of conversations, learn the completion alone (of `messages_column`:
            the last message) or all of it; by default the completion where there are prompts, all of it otherwise.
        conversational (`bool`): whether rows are conversations; follows from the columns and the rows.

    Raises:
        RecipeError: if the columns describe no kind of task, or a value is out of range.

    Example:

    ```python
    >>> spec = TaskSpec(kind="sequence-classification", task_column="user", text_column="text", label_column="label")
    >>> TaskSpec.from_dict(spec.to_dict()) == spec
    True

    ```
    """

    kind: TaskKind = field(
        metadata={"help": "What the model learns: labels of texts, words or images, or completions."}
    )
    task_column: str = field(metadata={"help": "Column of task ids: the unit that can be forgotten."})
    text_column: str | None = field(default=None, metadata={"help": "Column of texts to classify."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column of prompts (causal-lm, seq2seq-lm)."})
    completion_column: str | None = field(
        default=None, metadata={"help": "Column of completions (causal-lm, seq2seq-lm)."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels: names or numbers from 0."})
    id_column: str | None = field(default=None, metadata={"help": "Column of unique example ids; duplicates raise."})
    cluster_column: str | None = field(default=None, metadata={"help": "Column with a cluster key for each task."})
    label_names: tuple[str, ...] | None = field(default=None, metadata={"help": "Every label, in order."})
    template: str = field(default=_PROMPT_SLOT, metadata={"help": "Text around the prompt, with one {prompt} slot."})
    max_length: int | None = field(default=None, metadata={"help": "Longest example in tokens; longer ones are cut."})
    validation_fraction: float = field(default=0.0, metadata={"help": "Part of each task kept out of training."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the choice of validation examples."})
    tokens_column: str | None = field(default=None, metadata={"help": "Column of word lists (token-classification)."})
    tags_column: str | None = field(default=None, metadata={"help": "Column of lists with a label for each word."})
    ids: IdsSetting = field(
        default="strict",
        metadata={
            "help": "What to do with task ids that look alike (`C1`, `C1 `, `c1`, `C01`): `strict` refuses them, "
            "`strip` removes white space at the ends first, `as-is` takes them for different tasks."
        },
    )
    incomplete_rows: IncompleteRows = field(
        default="error",
        metadata={
            "help": "What to do with rows whose task id, text, image, label or completion is empty: `error` refuses "
            "them, `skip` leaves them out, in a build and in each request that reads the rows again."
        },
    )

    messages_column: str | None = field(
        default=None, metadata={"help": "Column of lists of messages, each with role and content (causal-lm)."}
    )
    tools_column: str | None = field(
        default=None, metadata={"help": "Of conversations: column of the tools (JSON schemas) that each may use."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Of conversations: path or text of a Jinja template; by default the tokenizer's own."},
    )
    assistant_only_loss: bool = field(
        default=False,
        metadata={
            "help": "Of conversations: learn only what stands between the template's markers `{% generation %}` and "
            "`{% endgeneration %}`."
        },
    )
    completion_only_loss: bool | None = field(
        default=None,
        metadata={
            "help": "Of conversations: learn the completion (of `messages_column`: the last message) alone, or all of "
            "it; by default alone where there are prompts."
        },
    )
    conversational: bool = field(
        default=False, metadata={"help": "Whether rows are conversations; follows from columns and rows."}
    )

    def __post_init__(self) -> None:
        if self.kind not in task_kinds():
            hint = hint_for(self.kind, task_kinds(), lists=False)
            raise RecipeError(f"Unknown kind {self.kind!r}; expected one of {', '.join(task_kinds())}.{hint}")
        self._check_columns()
        self._check_label_names()
        self._check_conversations()
        if not isinstance(self.template, str) or self.template.count(_PROMPT_SLOT) != 1:
            raise RecipeError(f"template must hold {_PROMPT_SLOT} exactly once, found {self.template!r}.")
        if self.max_length is not None and (not _is_int(self.max_length) or self.max_length < 1):
            raise RecipeError(f"max_length must be a positive number of tokens, found {self.max_length!r}.")
        fraction = self.validation_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
            raise RecipeError(f"validation_fraction must be at least 0 and below 1, found {fraction!r}.")
        # 0 and 0.0 must be written the same way, or equal recipes would give unequal files.
        object.__setattr__(self, "validation_fraction", float(fraction))
        if not _is_int(self.split_seed):
            raise RecipeError(f"split_seed must be an integer, found {self.split_seed!r}.")
        for name, choices in (("ids", get_args(IdsSetting)), ("incomplete_rows", get_args(IncompleteRows))):
            value = getattr(self, name)
            if value not in choices:
                hint = hint_for(value, choices, lists=False)
                raise RecipeError(f"{name} must be one of {', '.join(choices)}, found {value!r}.{hint}")

    def _check_columns(self) -> None:
        for name in ("task_column", "id_column", "cluster_column", *_ALL_CONTENT_COLUMNS):
            value = getattr(self, name)
            if (value is None and name == "task_column") or (value is not None and not _is_name(value)):
                raise RecipeError(f"{name} must be the name of a column, found {value!r}.")
        fields = frozenset(name for name in _ALL_CONTENT_COLUMNS if getattr(self, name) is not None)
        if fields - traits_of(self.kind).optional_columns not in traits_of(self.kind).columns:
            expected = " or ".join(" + ".join(_ordered(names)) for names in traits_of(self.kind).columns)
            found = ", ".join(_ordered(fields)) or "none of them"
            raise RecipeError(f"A {self.kind} task needs {expected} and no other content column; found {found}.")

    def _check_label_names(self) -> None:
        names: Any = self.label_names  # a recipe may hold anything
        if names is None:
            return
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
            listed = isinstance(names, (list, tuple))
            quote = " Put each in quotes: YAML reads yes, no and 1 as other things." if names and listed else ""
            raise RecipeError(f"label_names must be a list of non-empty strings, found {names!r}.{quote}")
        object.__setattr__(self, "label_names", tuple(names))
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            raise RecipeError(f"label_names must differ from each other; given twice: {', '.join(twice)}.")
        if self.label_column is None and self.tags_column is None:
            raise RecipeError("label_names were given without a label_column or tags_column.")

    def _check_conversations(self) -> None:
        if self.messages_column is not None:
            object.__setattr__(self, "conversational", True)
        may_be = traits_of(self.kind).takes_conversations and self.text_column is None
        given = [*self._conversation_settings, *(["conversational"] if self.conversational else [])]
        if given and not may_be:
            raise RecipeError(
                f"{given[0]} is for conversations: messages_column of a language model's task, or messages in its "
                "prompt_column and completion_column."
            )
        if self.conversational and self.template != _PROMPT_SLOT:
            raise RecipeError("template is put around prompts; conversations have a chat_template instead.")
        for name in ("assistant_only_loss", "conversational", "completion_only_loss"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name == "completion_only_loss"):
                raise RecipeError(f"{name} must be true or false, found {value!r}.")
        if self.chat_template is not None and not is_template(self.chat_template):
            raise RecipeError(
                "chat_template must be a Jinja template ({{ … }} or {% … %}), or, in recipes and from_dataset, the "
                f"path of a file that has one; found {self.chat_template!r}."
            )

    def require_texts(self) -> None:
        """Check that nothing is set that prompts and completions which are texts have no use for.

        Raises:
            RecipeError: naming the setting.
        """
        for name in self._conversation_settings:
            raise RecipeError(
                f"{name} is for conversations, and the columns {self.prompt_column!r} and {self.completion_column!r} "
                "hold texts: leave it out, or give lists of messages."
            )

    @property
    def _conversation_settings(self) -> list[str]:
        fields = dataclasses.fields(self)
        return [f.name for f in fields if f.name in _CONVERSATION_FIELDS and getattr(self, f.name) != f.default]

    @property
    def content_columns(self) -> tuple[str, ...]:
        """The data set's columns that hold the content of an example."""
        values = (getattr(self, name) for name in _ALL_CONTENT_COLUMNS)
        return tuple(value for value in values if value is not None)

    @property
    def columns(self) -> dict[str, str]:
        """The data set's columns that are read, each with the field that names it."""
        fields = ("task_column", *_ALL_CONTENT_COLUMNS, "id_column", "cluster_column")
        named = {getattr(self, field): field for field in reversed(fields) if getattr(self, field) is not None}
        return dict(reversed(named.items()))

    @property
    def name_columns(self) -> frozenset[str]:
        """The columns of ids and labels, which are names."""
        columns = (self.task_column, self.id_column, self.cluster_column, self.label_column)
        return frozenset(column for column in columns if column is not None)

    @property
    def message_columns(self) -> frozenset[str]:
        """The columns that hold lists of messages or of tools, or may hold them."""
        columns = [self.messages_column, self.tools_column]
        if traits_of(self.kind).takes_conversations:
            columns += [self.prompt_column, self.completion_column]
        return frozenset(column for column in columns if column is not None)

    @property
    def text_columns(self) -> frozenset[str]:
        """The columns of texts."""
        columns = (self.text_column, self.prompt_column, self.completion_column)
        return frozenset(column for column in columns if column is not None)

    def task_id(self, value: str) -> str:
        """Return the task id that a cell of the task column stands for."""
        return value.strip() if self.ids == "strip" else value

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dictionary of all fields; those that came later only where they are given."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _LATER_FIELDS or getattr(self, f.name) != f.default
        }
        values["label_names"] = None if self.label_names is None else list(self.label_names)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Read a dictionary that `to_dict` or a recipe wrote; `kind` may be left to the columns.

        Args:
            values (*mapping* of `str` to *JSON-able object*): the fields.

        Raises:
            RecipeError: if a key is unknown or a value is not usable.
        """
        refuse_unknown_keys(values, (f.name for f in dataclasses.fields(cls)), where="the task columns and settings")
        if values.get("task_column") is None:
            raise RecipeError("task_column is missing: name the column that holds the task ids.")
        return cls(**{**values, "kind": values.get("kind") or infer_kind(values)})


def infer_kind(values: Mapping[str, Any]) -> TaskKind:
    """Tell the kind of a task from the columns that are given.

    A seq2seq-lm task has the columns of a causal-lm task, so it is never inferred.

    Args:
        values (*mapping* of `str` to *object*): fields of a `TaskSpec`; absent and None mean the same.

    Raises:
        RecipeError: if no kind of task has these columns.
    """
    kinds = [traits_of(kind) for kind in task_kinds()]
    # The last kinds have the rarest columns.
    for traits in reversed(kinds):
        if any(values.get(column) is not None for column in traits.shown_by):
            return cast("TaskKind", traits.name)
    *most, last = (" + ".join(_ordered(traits.columns[0])) for traits in kinds if traits.shown_by)
    raise RecipeError(f"The columns tell no kind of task: give {', '.join(most)}, or {last}.")


def is_template(value: object) -> bool:
    """Whether a value is the text of a Jinja template, and no path of one."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def _ordered(names: frozenset[str]) -> list[str]:
    return [name for name in _ALL_CONTENT_COLUMNS if name in names]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
