"""Files that survive crashes: atomic replacement, locks, journal, archive, destruction."""

from hf_clamu.storage.archive import ARCHIVE_SUFFIX, Archive, is_archive_name, scratch_of
from hf_clamu.storage.durable import destroy_folder, is_plain_file, parse_json, write_private
from hf_clamu.storage.journal import Journal, Part

__all__ = [
    "ARCHIVE_SUFFIX",
    "Archive",
    "Journal",
    "Part",
    "destroy_folder",
    "is_archive_name",
    "is_plain_file",
    "parse_json",
    "scratch_of",
    "write_private",
]
