"""What this process has computed from files, for as long as they are unchanged."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FileStamps"]

# The coarsest timestamps of file systems in use. A file that was written within it may be written again and show
# nothing, so git's index calls it racy and reads it again.
_RACY_NS = 2 * 10**9
_MOST_ENTRIES = 4096
_KNOWN: OrderedDict[Hashable, Any] = OrderedDict()


@dataclass(frozen=True)
class FileStamps:
    """What tells whether files were changed: device, inode, size, and the times of content and of inode.

    A time of content can be set by whoever may write the file, that of the inode cannot. Nothing of it is saved.

    Args:
        paths (*tuple* of `Path`): the files.
        stamps (*tuple*): what was found.
        taken (`int`): when, in nanoseconds.
    """

    paths: tuple[Path, ...]
    stamps: tuple[tuple[int, ...], ...]
    taken: int

    @classmethod
    def of(cls, paths: Iterable[Path]) -> FileStamps:
        """Look at files.

        Raises:
            OSError: if one is missing.
        """
        paths, taken = tuple(paths), time.time_ns()
        return cls(paths, tuple(map(_stamp, paths)), taken)

    def hold(self) -> bool:
        """Whether the files are still as they were."""
        try:
            return tuple(map(_stamp, self.paths)) == self.stamps
        except OSError:
            return False

    def recall(self, what: Hashable) -> Any:
        """Return what was remembered of these very files, `None` if nothing was."""
        return _KNOWN.get((what, self.stamps))

    def remember(self, what: Hashable, value: Any) -> None:
        """Remember something that was computed from the files after they were looked at, if that can be relied on.

        Args:
            what (*hashable*): what it is.
            value: anything but `None`.
        """
        is_old = all(max(stamp[-2:]) < self.taken - _RACY_NS for stamp in self.stamps)
        # There a file's second time is that of its creation.
        if os.name == "nt" or not is_old or not self.hold():
            return
        _KNOWN[what, self.stamps] = value
        while len(_KNOWN) > _MOST_ENTRIES:
            _KNOWN.popitem(last=False)


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
