"""The private folders beside a model that keep what its requests need."""

from __future__ import annotations

from pathlib import Path

from hf_clamu.hub.pull import place_of_repo
from hf_clamu.storage.durable import private_folder

__all__ = ["make_private", "requests_of"]


def requests_of(model: str) -> Path:
    """Return the folder of the requests of a model: beside it, or in the working directory for a Hub id.

    Args:
        model (`str`): folder or Hub id.
    """
    place = Path(model) if Path(model).is_dir() else place_of_repo(model)
    place = place.resolve()
    return place.parent / "requests" / place.name


def make_private(requests: Path, *inside: str) -> Path:
    """Make the folder of the requests of a model, and one inside it, so that only their owner can read them.

    Args:
        requests (`Path`): see `requests_of`; the folder of all models' requests is made, too.
        inside (`str`, *optional*): name of the folder inside it.

    Returns:
        `Path`: the innermost folder.

    Raises:
        RecipeError: if there is a link or a file at the place of one.
    """
    folder = requests.joinpath(*inside)
    for one in (requests.parent, requests, folder):
        private_folder(one, "what keeps the requests of a model")
    return folder
