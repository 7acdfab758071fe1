"""The models on the Hub whose cards name a repository as their base model."""

from __future__ import annotations

from typing import Any

from hf_clamu.hub.errors import client_errors, reason_of

__all__ = ["find_descendants"]

# What is raised of an answer that is no list of models: a mirror may answer this question with anything.
_MISREAD = (TypeError, KeyError, AttributeError)


def find_descendants(api: Any, repo_id: str) -> tuple[tuple[dict[str, str], ...], str | None]:
    """Return who names a repository as base model, as far as this token may see them.

    The Hub makes tags of what a card names: `base_model:ORG/NAME`, and one more with the relation in the middle.

    Args:
        api (`huggingface_hub.HfApi`): with the token.
        repo_id (`str`): the repository.

    Returns:
        *tuple*: `repo_id` and `relation` (`""` if there is none) of each model, by name; and why there may be more, if
            the Hub did not say all.
    """
    found, why = {}, None
    try:
        for model in api.list_models(filter=f"base_model:{repo_id}"):
            # A mirror that does not know the filter lists other models, too.
            named = [tag.split(":") for tag in model.tags or () if tag.startswith("base_model:")]
            relations = [parts[1] if len(parts) == 3 else "" for parts in named if parts[-1] == repo_id]
            if relations:
                found[model.id] = max(relations)
    except client_errors() as error:
        why = reason_of(error)
    except _MISREAD as error:
        why = f"its answer is no list of models ({type(error).__name__})."
    return tuple({"repo_id": name, "relation": relation} for name, relation in sorted(found.items())), why
