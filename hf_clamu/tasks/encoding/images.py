"""The encoder of images: by an image processor, or the pixels as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_clamu.errors import TaskDataError
from hf_clamu.tasks.encoding.encoders import RowEncoder, encoder_for
from hf_clamu.tasks.spec import TaskSpec

_CHANNEL_COUNTS = (1, 3, 4)


@encoder_for("image-classification")
def _image_encoder(spec: TaskSpec, processor: Any) -> RowEncoder:
    column = str(spec.image_column)
    return lambda row, label: {
        "pixel_values": _pixel_values(row[column], processor),
        "labels": torch.tensor(label, dtype=torch.int64),
    }


def _pixel_values(image: Any, processor: Any) -> torch.Tensor:
    if image is None:
        raise TaskDataError("the image is null")
    if processor is not None:
        rgb = image.convert("RGB") if hasattr(image, "convert") else _rgb_array(_array(image))
        pixels = torch.as_tensor(processor(images=rgb, return_tensors="pt")["pixel_values"][0], dtype=torch.float32)
    else:
        array = _array(image)
        if array.ndim == 2:
            array = array[None]
        elif hasattr(image, "convert") or array.shape[-1] in _CHANNEL_COUNTS:
            # Channels last, as PIL has it, wins where both readings are possible.
            array = array.transpose(2, 0, 1)
        pixels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not bool(torch.isfinite(pixels).all()):
        raise TaskDataError("the image holds NaN or infinite pixels")
    return pixels


def _array(image: Any) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise TaskDataError("the image has rows of different lengths") from error
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or array.size == 0:
        raise TaskDataError(
            "expected a PIL image or numbers of shape (height, width), (height, width, channels) or (channels, "
            f"height, width), found {type(image).__name__} of shape {array.shape}; encoded image files need "
            "cast_column(..., datasets.Image())"
        )
    return array


def _rgb_array(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    # Nested lists of integers come as int64, which image processors do not take for 8-bit pixels.
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array
