"""Reading YAML text that is not trusted: plain values, a bounded number of them, each key once."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hf_clamu.errors import RecipeError

__all__ = ["read_yaml"]

# A recipe with a thousand label names is far below both.
_MOST_CHARACTERS = 2**20
_MOST_VALUES = 100_000
_MERGE_TAG = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Reads 5e-5 as a number; YAML 1.1 wants a point and a sign."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """Read one YAML document.

    Args:
        text (`str`): the document.
        where (`str`): what it is, as the start of a message.

    Raises:
        RecipeError: if it is no YAML, too large, nested without end, or gives a key twice; the message names the line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise RecipeError(
            f"{where} has {len(text):,} characters, and at most {_MOST_CHARACTERS:,} are read. It holds settings "
            "alone: rows belong in data files."
        )
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, where, {}, ())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        during = f" {error.context}" if error.context else ""
        raise RecipeError(
            f"{where}{line}, cannot be read as YAML: {error.problem or 'wrong syntax'}{during}."
        ) from error
    except RecursionError:
        raise RecipeError(f"{where} is nested too deeply to be read. It needs three levels or four.") from None
    except (yaml.YAMLError, ValueError) as error:  # a number of 5,000 digits, a 13th month
        raise RecipeError(f"{where} cannot be read as YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _count(node: yaml.Node, where: str, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many values a node stands for, each alias as what it repeats; refuse too many."""
    if id(node) in known:
        return known[id(node)]
    line = f"{where}, line {node.start_mark.line + 1}"
    if id(node) in above:
        raise RecipeError(f"{line}: a value contains itself (an alias *name inside its anchor &name).")
    above = (*above, id(node))
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_count(child, where, known, above) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
                if (key.tag, key.value) in seen:
                    raise RecipeError(
                        f"{where}, line {key.start_mark.line + 1}: the key {key.value!r} is given twice. Keep one."
                    )
                seen.add((key.tag, key.value))
            total += _count(key, where, known, above) + _count(value, where, known, above)
    if total > _MOST_VALUES:
        raise RecipeError(
            f"{line}: with its aliases repeated this stands for more than {_MOST_VALUES:,} values. Write out what is "
            "meant."
        )
    known[id(node)] = total
    return total
