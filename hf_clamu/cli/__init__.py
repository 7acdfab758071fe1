"""The command line `clamu`.

Nothing heavy is imported before a command runs, so `clamu --help` answers at once.
"""

from hf_clamu.cli.app import main

__all__ = ["main"]
