"""Sent140 and Reddit, cut into their users."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.paper.data import LoadReport, open_rows, require_columns
from hf_clamu.errors import RecipeError, TaskDataError
from hf_clamu.exact import canonical_json, sha256_hex
from hf_clamu.tasks import TaskDataset, partition_by_column

__all__ = ["reddit", "sent140"]

_SENTIMENTS = {0: "negative", 4: "positive"}
_GONE = frozenset({"[deleted]", "[removed]"})
_LEAF_MARKS = frozenset({"<PAD>", "<BOS>", "<EOS>"})
# What a bot changes from one copy of its post to the next: whom it addresses, links and numbers.
_VARIABLE = re.compile(r"@\w+|https?://\S+|www\.\S+|/?u/\w+|\d+")
_BOT_NAME = re.compile(r"automoderator|.*bot[-_]?\d*", flags=re.IGNORECASE)
_FEWEST_OF_A_BOT = 5


@dataclass
class _Posts:
    """Posts that are still in, and how many are not for which reason."""

    posts: list[tuple[str, str, str]] = field(default_factory=list)  # user, text, label
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def keep(self, reason: str, users: set[str]) -> None:
        """Keep the posts of these users alone."""
        kept = [post for post in self.posts if post[0] in users]
        if len(kept) < len(self.posts):
            self.drop(reason, len(self.posts) - len(kept))
        self.posts = kept

    def by_user(self) -> dict[str, list[tuple[str, str, str]]]:
        found: dict[str, list[tuple[str, str, str]]] = {}
        for post in self.posts:
            found.setdefault(post[0], []).append(post)
        return found


def sent140(
    *,
    seed: int,
    path: str | Path | None = None,
    head: str = "classification",
    num_tasks: int | None = None,
    min_examples: int = 20,
    max_examples: int = 500,
    examples_per_task: int | None = None,
    keep_single_label: bool = True,
    validation_fraction: float = 0.2,
    max_length: int | None = None,
) -> tuple[TaskDataset, LoadReport]:
    """Return Sent140's users as tasks: their posts and whether each is negative or positive.

    Left out, in this order: neutral posts (sentiment 2) and unknown sentiments; posts without text or user; accounts
    that are taken for bots; posts that a user has under both sentiments, and repeats of a post; users with one label,
    if they are not wanted; users with too few posts.

    An account is taken for a bot if it has more than `max_examples` posts, or at least five posts of which less than
    half differ in more than mentions, links and numbers.

    Args:
        seed (`int`): of the choice of users and posts.
        path (`str` or `Path`, *optional*): a file with columns "text", "user" and "sentiment".
        head (`str`, defaults to `"classification"`): or `"lm"`: the completion " negative" or " positive" of
            `{post}\\nSentiment:`.
        num_tasks (`int`, *optional*): how many users; by default all that are left.
        min_examples (`int`, defaults to 20): fewest posts of a user.
        max_examples (`int`, defaults to 500): most posts of an account that is no bot.
        examples_per_task (`int`, *optional*): the most posts that a task gets.
        keep_single_label (`bool`, defaults to `True`): whether users stay whose posts all have one sentiment.
        validation_fraction (`float`, defaults to 0.2): part of each task kept out of training.
        max_length (`int`, *optional*): tokens per example.

    Returns:
        *tuple* of `TaskDataset` and `LoadReport`.

    Raises:
        RecipeError: if the head is unknown.
        TaskDataError: if a column is missing, or no user is left.

    Source: Sent140 (Go, Bhayani and Huang, 2009), `stanfordnlp/sentiment140` on the Hub; the ClAMU paper takes users
    as tasks. The numbers of posts are not the paper's, which names none.
    """
    rows = open_rows("stanfordnlp/sentiment140", path)
    require_columns(rows, ("text", "user", "sentiment"), "stanfordnlp/sentiment140")
    found = _Posts()
    columns = rows.with_format(None).select_columns(["text", "user", "sentiment"])[:]
    for text, user, sentiment in zip(*(columns[name] for name in ("text", "user", "sentiment")), strict=True):
        if sentiment not in _SENTIMENTS:
            found.drop("neutral" if sentiment == 2 else "unknown sentiment")
        elif _is_empty(text) or not user:
            found.drop("no text or user")
        else:
            found.posts.append((str(user), text, _SENTIMENTS[sentiment]))
    _drop_bots(found, max_examples)
    _drop_repeats(found)
    if not keep_single_label:
        _drop_single_label(found)
    return _cut(
        found,
        source="stanfordnlp/sentiment140" if path is None else str(path),
        num_rows=len(rows),
        label_names=list(_SENTIMENTS.values()),
        template="{prompt}\nSentiment:",
        head=head,
        limits={"num_tasks": num_tasks, "min_examples": min_examples, "examples_per_task": examples_per_task},
        seed=seed,
        spec={"validation_fraction": validation_fraction, "max_length": max_length},
    )


def reddit(
    *,
    seed: int,
    path: str | Path | None = None,
    head: str = "classification",
    subreddits: Sequence[str] | None = None,
    num_tasks: int | None = None,
    examples_per_task: int = 100,
    max_examples: int = 5000,
    validation_fraction: float = 0.2,
    max_length: int | None = None,
) -> tuple[TaskDataset, LoadReport]:
    """Return Reddit's users as tasks: 100 comments each from two of ten subreddits, which are the labels.

    Left out, in this order: comments that are empty, "[deleted]" or "[removed]", or of a deleted user; accounts that
    are taken for bots; repeats; comments elsewhere than in the ten subreddits (those with the most comments, if none
    are named); users of one subreddit; comments elsewhere than in a user's two most frequent subreddits; users with
    fewer than `examples_per_task` comments. A task gets as many comments of both, as far as they last.

    An account is taken for a bot if it is called AutoModerator or its name ends in "bot" (and perhaps a number), or by
    the rule of `sent140`.

    Args:
        seed (`int`): of the choice of users and comments.
        path (`str` or `Path`): a file in LEAF's layout, or a folder of them; the Hub has no copy. Comments may be
            strings or lists of tokens (also chunked, as LEAF writes them), "y" subreddits or mappings with
            "subreddit".
        head (`str`, defaults to `"classification"`): or `"lm"`: the completion " NAME" of `{comment}\\nSubreddit:`.
        subreddits (*sequence* of `str`, *optional*): the labels.
        num_tasks (`int`, *optional*): how many users; by default all that are left.
        examples_per_task (`int`, defaults to 100): comments per user, validation included.
        max_examples (`int`, defaults to 5,000): most comments of an account that is no bot.
        validation_fraction (`float`, defaults to 0.2): part of each task kept out of training.
        max_length (`int`, *optional*): tokens per example.

    Returns:
        *tuple* of `TaskDataset` and `LoadReport`.

    Raises:
        RecipeError: if there is no path, or the head is unknown.
        TaskDataError: if a file is not in LEAF's layout, or no user is left.

    Source: LEAF (arXiv 1812.01097), Reddit of December 2017 from Pushshift; the ClAMU paper, setting (iv).
    """
    if path is None:
        raise RecipeError("Reddit is not on the Hub: make LEAF's JSON files and give their path.")
    found = _Posts()
    num_rows = 0
    for user, text, label in _leaf(Path(path)):
        num_rows += 1
        if _is_empty(text):
            found.drop("empty, deleted or removed")
        elif user in _GONE:
            found.drop("user deleted")
        else:
            found.posts.append((user, text, label))
    named = {user for user, _, _ in found.posts if not _BOT_NAME.fullmatch(user)}
    found.keep("called a bot", named)
    _drop_bots(found, max_examples)
    _drop_repeats(found)
    labels = list(subreddits) if subreddits is not None else _most_frequent([post[2] for post in found.posts], 10)
    _drop_posts(found, "other subreddit", lambda post: post[2] in set(labels))
    _drop_single_label(found)
    favourites = {user: set(_most_frequent([post[2] for post in posts], 2)) for user, posts in found.by_user().items()}
    _drop_posts(found, "not of the user's two subreddits", lambda post: post[2] in favourites[post[0]])
    _balance(found, examples_per_task, seed)
    return _cut(
        found,
        source=str(path),
        num_rows=num_rows,
        label_names=labels,
        template="{prompt}\nSubreddit:",
        head=head,
        limits={"num_tasks": num_tasks, "min_examples": examples_per_task, "examples_per_task": examples_per_task},
        seed=seed,
        spec={"validation_fraction": validation_fraction, "max_length": max_length},
    )


def _cut(
    found: _Posts,
    *,
    source: str,
    num_rows: int,
    label_names: list[str],
    template: str,
    head: str,
    limits: Mapping[str, Any],
    seed: int,
    spec: Mapping[str, Any],
) -> tuple[TaskDataset, LoadReport]:
    """Make a task of each user."""
    from datasets import Dataset

    if head not in ("classification", "lm"):
        raise RecipeError(f"head must be 'classification' or 'lm', found {head!r}.")
    if not found.posts:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items())
        raise TaskDataError(f"No post of {source} is left: {reasons or 'it has none'}.")
    users, texts, labels = (list(column) for column in zip(*found.posts, strict=True))
    rows = Dataset.from_dict({"user": users, "text": texts, "label": labels})
    cut, report = partition_by_column(
        rows, "user", seed=seed, label_column="label", content_columns=["text"], **limits
    )
    if report.num_left_over:
        found.drop("user with too few posts, or not drawn, or above the cap", report.num_left_over)
    common = {"task_column": "task", "split_seed": seed, **spec}
    if head == "classification":
        tasks = TaskDataset.from_dataset(
            cut, text_column="text", label_column="label", label_names=label_names, **common
        )
    else:
        completions = [f" {label}" for label in cut["label"]]
        cut = Dataset.from_dict({"task": cut["task"][:], "text": cut["text"][:], "completion": completions})
        tasks = TaskDataset.from_dataset(
            cut, prompt_column="text", completion_column="completion", template=template, **common
        )
    return tasks, LoadReport(source=source, rows=num_rows, dropped=dict(found.dropped), partitions={source: report})


def _is_empty(text: Any) -> bool:
    # LEAF's tokenizer parts the brackets from the word.
    return not isinstance(text, str) or not text.strip() or text.replace(" ", "").strip().lower() in _GONE


def _drop_posts(found: _Posts, reason: str, is_kept: Any) -> None:
    kept = [post for post in found.posts if is_kept(post)]
    if len(kept) < len(found.posts):
        found.drop(reason, len(found.posts) - len(kept))
    found.posts = kept


def _drop_repeats(found: _Posts) -> None:
    labels: dict[tuple[str, str], set[str]] = {}
    for user, text, label in found.posts:
        labels.setdefault((user, text), set()).add(label)
    seen = set()
    kept = []
    for user, text, label in found.posts:
        if len(labels[user, text]) > 1:
            found.drop("same post with several labels")
        elif (user, text) in seen:
            found.drop("repeat")
        else:
            seen.add((user, text))
            kept.append((user, text, label))
    found.posts = kept


def _drop_bots(found: _Posts, max_examples: int) -> None:
    people = set()
    for user, posts in found.by_user().items():
        different = {" ".join(_VARIABLE.sub("", text).lower().split()) for _, text, _ in posts}
        repeats = len(posts) >= _FEWEST_OF_A_BOT and len(different) < len(posts) / 2
        if len(posts) <= max_examples and not repeats:
            people.add(user)
    found.keep("taken for a bot", people)


def _drop_single_label(found: _Posts) -> None:
    users = {user for user, posts in found.by_user().items() if len({label for _, _, label in posts}) > 1}
    found.keep("user with one label", users)


def _most_frequent(labels: Sequence[str], count: int) -> list[str]:
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return sorted(sorted(counts, key=lambda label: (-counts[label], label))[:count])


def _balance(found: _Posts, count: int, seed: int) -> None:
    """Keep at most so many posts of each user, as many of each label, as far as they last."""
    kept = []
    for posts in found.by_user().values():
        ranked = sorted(posts, key=lambda post: sha256_hex(canonical_json(["reddit", seed, *post])))
        place: dict[str, int] = {}
        rounds = []
        for post in ranked:
            place[post[2]] = place.get(post[2], 0) + 1
            rounds.append((place[post[2]], post))
        kept += [post for _, post in sorted(rounds, key=lambda pair: pair[0])[:count]]
        if len(posts) > count:
            found.drop("above the cap", len(posts) - count)
    found.posts = kept


def _leaf(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield user, text and subreddit of every comment in LEAF's files."""
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths or not all(one.is_file() for one in paths):
        raise TaskDataError(f"There is no file in LEAF's layout at {path}.")
    for one in paths:
        try:
            data = json.loads(one.read_text(encoding="utf-8"))["user_data"]
            for user, comments in data.items():
                for text, label in zip(comments["x"], comments["y"], strict=True):
                    yield user, _text(text), _subreddit(label)
        # A missing key, a list in the place of a mapping, unequal lengths, or no JSON at all.
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TaskDataError(
                f"{one} is not in LEAF's layout (user_data: user: x, y of equal length): {error!r}."
            ) from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(_tokens(value))


def _tokens(value: Any) -> Iterator[str]:
    for one in value or ():
        if not isinstance(one, str):
            yield from _tokens(one)
        elif one not in _LEAF_MARKS:
            yield one


def _subreddit(value: Any) -> str:
    return value if isinstance(value, str) else str(value["subreddit"])
