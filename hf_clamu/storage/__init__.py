"""Files that survive crashes.

durable.py    private files and folders, written as a whole or not at all; reading what may be damaged
destroy.py    overwriting and deleting files that must not stay
tensors.py    safetensors files
sizes.py      sizes as users write them
staging.py    folders in which a model is written before it comes to its place
contents.py   the files inside a folder that is replaced file by file
rights.py     rights and owners of files that replace others
replace.py    replacing a folder as a whole
locking.py    one run at a time on an output
journal.py    what a run has finished, for the next start
archive.py    integer task vectors that spare a request the retraining
snapshot/     encoded rows that spare a request the original data
"""

from hf_clamu.storage.archive import ARCHIVE_SUFFIX, Archive, HeldArchive, is_archive_name, scratch_of
from hf_clamu.storage.destroy import destroy_folder
from hf_clamu.storage.durable import is_plain_file, parse_json, read_bounded, read_json, write_atomically
from hf_clamu.storage.journal import Journal, Part
from hf_clamu.storage.snapshot import KEY_VARIABLE, Snapshot, environment_key, snapshot_beside
from hf_clamu.storage.tensors import opened_tensors, read_tensors, save_tensors

__all__ = [
    "ARCHIVE_SUFFIX",
    "Archive",
    "HeldArchive",
    "Journal",
    "KEY_VARIABLE",
    "Part",
    "Snapshot",
    "destroy_folder",
    "environment_key",
    "is_archive_name",
    "is_plain_file",
    "opened_tensors",
    "parse_json",
    "read_bounded",
    "read_json",
    "read_tensors",
    "save_tensors",
    "scratch_of",
    "snapshot_beside",
    "write_atomically",
]
