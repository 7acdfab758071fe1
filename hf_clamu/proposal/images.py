"""The shape of an image in a file of rows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["image_shape"]

_CHANNEL_COUNTS = (1, 3, 4)


def image_shape(value: Any) -> tuple[int, int, int] | None:
    """Return channels, height and width of an image; `None` if it cannot be read."""
    try:
        if not isinstance(value, Mapping):
            shape = np.asarray(value).shape
            if len(shape) == 3:
                last = shape[-1] in _CHANNEL_COUNTS
                return (shape[2], shape[0], shape[1]) if last else (shape[0], shape[1], shape[2])
            return (1, shape[0], shape[1]) if len(shape) == 2 else None
        from PIL import Image

        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as image:
            return len(image.getbands()), image.height, image.width
    except (OSError, ValueError, TypeError, AttributeError):
        return None
