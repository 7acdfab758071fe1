"""Label names of the data and of the base model: one table, reconciled by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_clamu.errors import IncompatibleBaseError
from hf_clamu.tasks import TaskSpec, traits_of

__all__ = ["labels_of", "require_same_labels"]


def labels_of(spec: TaskSpec, num_labels: int | None) -> dict[str, Any]:
    """Return what a configuration says of the labels of the data; nothing for language models.

    Args:
        spec (`TaskSpec`): has their names.
        num_labels (`int`, *optional*): their number, if they have no names.
    """
    if traits_of(spec.kind).writes_text:
        return {}
    names = spec.label_names or tuple(str(i) for i in range(num_labels or 0))
    labels: dict[str, Any] = {"num_labels": len(names), "id2label": dict(enumerate(names))}
    return {**labels, "label2id": {name: i for i, name in enumerate(names)}}


def require_same_labels(own: Mapping[int, str], labels: Mapping[str, Any]) -> None:
    """Check that a pretrained head means by each number what the data mean.

    The names of the data are those of the merged model. A head with names that say nothing (`LABEL_0`), or with none
    of the data's, is one that the tasks start from; one that has the same names at other numbers answers wrongly.

    Args:
        own (*mapping* of `int` to `str`): `id2label` of the head as it was pretrained.
        labels (*mapping*): those of the data, see `labels_of`.

    Raises:
        IncompatibleBaseError: if a name has another number, or only some of them are the head's.
    """
    if not labels or not own:
        return
    theirs = [str(own[number]) for number in sorted(own)]
    ours = [str(labels["id2label"][number]) for number in sorted(labels["id2label"])]
    folded, wanted = [name.casefold() for name in theirs], [name.casefold() for name in ours]
    if len(theirs) != len(ours) or folded == wanted or not set(folded) & set(wanted):
        return
    in_order = (
        f" Give label_names in its order: {', '.join(theirs)}."
        if sorted(theirs) == sorted(ours)
        else (" Give label_names that fit it, or a model without a head.")
    )
    raise IncompatibleBaseError(
        f"The base model's head has the labels {', '.join(theirs)} (id2label), and the data have {', '.join(ours)}: "
        f"the same numbers would mean other labels.{in_order}"
    )
