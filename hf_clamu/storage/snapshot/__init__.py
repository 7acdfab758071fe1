"""The encoded rows of merged tasks, beside a model: a file for each task, private, encrypted if there is a key.

files.py        the folder: writing, checked reading, destroying
encryption.py   AES-256-GCM with a key from the environment
"""

from hf_clamu.storage.snapshot.encryption import KEY_VARIABLE, environment_key
from hf_clamu.storage.snapshot.files import Snapshot, snapshot_beside

__all__ = ["KEY_VARIABLE", "Snapshot", "environment_key", "snapshot_beside"]
