"""Event files of TensorBoard, as tests read them."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX, which reads event files, is not installed"
)


def read_events(folder: Path) -> list[tuple[int, str, float]]:
    """Steps, tags and values of the event files in a folder, read as the format of their records says."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            # A length and its checksum, so many bytes and their checksum.
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def losses_in(folder: Path) -> dict[str, list[float]]:
    """The losses of each task, by the steps of its finetuning."""
    found: dict[str, list[float]] = {}
    for _, tag, value in read_events(folder):
        if tag.startswith("loss/"):
            found.setdefault(tag.removeprefix("loss/"), []).append(value)
    return found
