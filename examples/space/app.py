"""The deletion desk in a Space: settings come from its variables and secrets, which README.md lists.

The disk of a Space is empty after each restart, and a mounted bucket has neither locks nor times of files. So the desk
works on the disk, and what must not be lost (requests, receipts, and the note of a change that is not settled) is
copied to a private bucket of its own whenever it changes, and back at the start.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path.home() / "desk"
# No journal beside its note: it holds vectors.
KEPT = ["requests/*", "receipts/*", ".*.journal/note.json"]
DROPPED = ["*.lock", "*/.*"]
SECONDS = 2.0


class Copies:
    """Copies of a folder's files in a private bucket.

    Args:
        folder (`Path`): the folder.
        bucket (`str`): `ORG/NAME`.
    """

    def __init__(self, folder: Path, bucket: str) -> None:
        from huggingface_hub import HfApi

        self._api, self._folder, self._bucket = HfApi(), folder, bucket
        self._place = f"hf://buckets/{bucket}"
        self._seen: set[tuple[str, int, int]] = set()
        self._stopped = threading.Event()

    def bring_back(self) -> None:
        """Fill the folder; make the bucket if it is not there."""
        self._api.create_bucket(self._bucket, private=True, exist_ok=True)
        if not self._api.bucket_info(self._bucket).private:
            sys.exit(f"{self._bucket} is public, and requests name people. Make it private in its settings.")
        self._api.sync_bucket(self._place, str(self._folder), include=KEPT, quiet=True)
        for path in self._folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        self._seen = self._files()

    def update(self) -> None:
        """Copy what changed since the last time, and delete what is gone."""
        found = self._files()
        if found != self._seen:
            options = {"include": KEPT, "exclude": DROPPED, "delete": True, "quiet": True}
            self._api.sync_bucket(str(self._folder), self._place, **options)
            self._seen = found

    def keep(self) -> None:
        """Go on copying until `stop`."""
        while not self._stopped.wait(SECONDS):
            try:
                self.update()
            except Exception as error:  # a file that went away meanwhile, a Hub that does not answer: next time
                print(f"Not copied to {self._place} yet: {error}", file=sys.stderr)

    def stop(self) -> None:
        """Copy for the last time."""
        self._stopped.set()
        self.update()

    def _files(self) -> set[tuple[str, int, int]]:
        found = set()
        for path in self._folder.rglob("*"):
            try:
                values = path.stat()
            except OSError:
                continue
            if path.is_file():
                found.add((str(path), values.st_size, values.st_mtime_ns))
        return found


def words(variables: Mapping[str, str]) -> list[str]:
    """Return the command line of the desk."""

    def named(name: str) -> list[str]:
        return [one for one in re.split(r"[,\s]+", variables.get(name, "")) if one]

    for name in ("CLAMU_MODEL", "CLAMU_USERS", "CLAMU_FILES", "HF_TOKEN"):
        if not variables.get(name, "").strip():
            sys.exit(f"{name} is not set. Set it in the settings of the Space; README.md says what it is.")
    found = ["desk", *named("CLAMU_MODEL"), "--host", "0.0.0.0", "--port", variables.get("PORT", "7860")]
    found += [word for user in named("CLAMU_USERS") for word in ("--hub-user", user)]
    found += [word for file in named("CLAMU_DATA") for word in ("--data", file)]
    if variables.get("CLAMU_ARCHIVE"):
        found += ["--archive", variables["CLAMU_ARCHIVE"].strip()]
    found += ["--verify", variables.get("CLAMU_VERIFY", "audit")]
    found += ["--on-mismatch", variables.get("CLAMU_ON_MISMATCH", "error")]
    return found if variables.get("CLAMU_KEEP_HISTORY") == "1" else [*found, "--erase-history"]


def key_file(text: str, folder: Path) -> Path:
    """Write the text of a key where only this user reads it."""
    path = folder / "key.pem"
    path.touch(mode=0o600)
    # In a secret, line ends may have become spaces or the letters \\n.
    path.write_text(text.replace("\\n", "\n").strip() + "\n", encoding="ascii")
    return path


def main() -> int:
    """Run the desk until it is stopped."""
    command = words(os.environ)
    os.umask(0o077)
    FOLDER.mkdir(exist_ok=True)
    os.chdir(FOLDER)
    if os.environ.get("CLAMU_KEY_PEM"):
        os.environ["CLAMU_SIGNING_KEY"] = str(key_file(os.environ.pop("CLAMU_KEY_PEM"), Path.home()))
    copies = Copies(FOLDER, os.environ["CLAMU_FILES"].strip())
    copies.bring_back()
    threading.Thread(target=copies.keep, daemon=True).start()
    # The server stops in order when it is told so, and then hands the signal on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        from hf_clamu.cli import main as clamu

        return clamu(command)
    finally:
        copies.stop()


if __name__ == "__main__":
    sys.exit(main())
