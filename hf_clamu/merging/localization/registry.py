"""The localizations by name. A new one of this package is a file beside this one and an entry here."""

from __future__ import annotations

from hf_clamu.merging.localization.base import LocalizationMethod
from hf_clamu.merging.localization.clamu import Clamu
from hf_clamu.merging.localization.emr import Emr
from hf_clamu.merging.localization.global_ import Global
from hf_clamu.merging.localization.sift import Sift
from hf_clamu.merging.localization.tall import Tall
from hf_clamu.merging.registry import Registry

__all__ = ["LOCALIZATIONS", "register_localization"]

LOCALIZATIONS: Registry[LocalizationMethod] = Registry("localization", [Clamu(), Sift(), Tall(), Emr(), Global()])


def register_localization(method: LocalizationMethod) -> None:
    """Add a localization, so that `ClamuArguments(localization=NAME)` and recipes accept its name.

    Whatever loads, changes or verifies a model that was built with it must register it first.

    Args:
        method (`LocalizationMethod`): the method; its docstring says what must hold for requests to stay exact.

    Raises:
        ValueError: if the name is taken or no word, or the method lacks what it declares.
    """
    LOCALIZATIONS.register(method)
