"""Rows from what a person types or gives: a text, or an image."""

from __future__ import annotations

from typing import IO, Any

from hf_clamu.errors import RecipeError
from hf_clamu.tasks import TaskSpec

__all__ = ["image_row", "text_row"]


def text_row(spec: TaskSpec, text: str) -> dict[str, Any]:
    """Return a text as a row of a recipe that reads texts; a text for a classifier of words is split at spaces.

    Args:
        spec (`TaskSpec`): how rows became tasks.
        text (`str`): the text; of a conversation what the user says.
    """
    if spec.tokens_column is not None:
        return {spec.tokens_column: text.split()}
    if spec.conversational:
        return {str(spec.messages_column or spec.prompt_column): [{"role": "user", "content": text}]}
    return {str(spec.prompt_column or spec.text_column): text}


def image_row(spec: TaskSpec, source: str | IO[bytes], *, name: str, most_pixels: int | None = None) -> dict[str, Any]:
    """Return an image as a row of a recipe that reads images.

    Args:
        spec (`TaskSpec`): how rows became tasks.
        source (`str` or *binary file*): file of the image.
        name (`str`): what it is called in a message.
        most_pixels (`int`, *optional*): larger ones are refused before they are read.

    Raises:
        RecipeError: if it is no image that can be read, or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise RecipeError(
                    f"{name} has {image.width:,} times {image.height:,} pixels, and at most {most_pixels:,} are "
                    "taken. Give a smaller one."
                )
            return {str(spec.image_column): ImageOps.exif_transpose(image)}  # as data sets and pipelines read it
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{name} is no image file that can be read ({error}).") from error
