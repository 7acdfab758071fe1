"""Methods by name: the built-in ones, and those that users add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from hf_clamu.errors import RecipeError
from hf_clamu.known_names import hint_for

__all__ = ["Method", "Registry", "listed"]


class Method(Protocol):
    """What every method says of itself."""

    name: str
    summary: str

    def check(self) -> None:
        """Check that what is declared and what is implemented fit together."""
        ...


MethodT = TypeVar("MethodT", bound=Method)


class Registry(Generic[MethodT]):
    """The values that a setting may have, each with the method that carries it out.

    Iterating gives the names, in the order of registration.

    Args:
        setting (`str`): the setting that chooses a method by its name.
        builtin (*iterable* of `Method`): the methods of this package.
    """

    def __init__(self, setting: str, builtin: Iterable[MethodT]) -> None:
        self.setting = setting
        self._methods: dict[str, MethodT] = {}
        for method in builtin:
            self.register(method)
        self._builtin = tuple(self._methods)

    def register(self, method: MethodT) -> None:
        """Add a method, so that the setting accepts its name.

        Raises:
            ValueError: if the name is taken or no word, or the method lacks what it declares.
        """
        if not isinstance(method.name, str) or not method.name.isidentifier():
            raise ValueError(f"The name of a {self.setting} must be a word such as 'my_method', got {method.name!r}.")
        if method.name in self._methods:
            raise ValueError(
                f"A {self.setting} called {method.name!r} is registered already. Saved models name their methods, so "
                "a name stands for one method: choose another."
            )
        method.check()
        self._methods[method.name] = method

    def unregister(self, name: str) -> None:
        """Remove a method that was added.

        Raises:
            ValueError: if there is none of that name, or it belongs to this package.
        """
        if name not in self._methods or name in self._builtin:
            raise ValueError(f"No {self.setting} called {name!r} was added.")
        del self._methods[name]

    def __getitem__(self, name: object) -> MethodT:
        """Return the method of a name.

        Raises:
            RecipeError: if there is none.
        """
        self.require(name)
        return self._methods[str(name)]

    def require(self, name: object) -> None:
        """Check that there is a method of a name.

        Raises:
            RecipeError: if there is none.
        """
        if name not in self:
            hint = hint_for(name, tuple(self), lists=False)
            raise RecipeError(
                f"{self.setting} must be one of {', '.join(self)}, got {name!r}.{hint} A method from outside hf_clamu "
                f"must be registered first (hf_clamu.merging.register_{self.setting})."
            )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def values(self) -> tuple[MethodT, ...]:
        """Return the methods, in the order of their names' registration."""
        return tuple(self._methods.values())

    def describe(self) -> str:
        """Return the names with what they mean, as part of a sentence."""
        return listed([f"{method.name} ({method.summary})" for method in self._methods.values()])


def listed(words: Iterable[str]) -> str:
    """Return words as a list in a sentence: `a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
