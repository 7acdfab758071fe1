"""The command line `clamu`. Nothing heavy is imported before a command runs, so `clamu --help` answers at once.

app           the program: its commands, its exit codes
commands/     a file for one command, or for two that belong together
options       arguments and options that commands share
kernels       what must be set before torch is imported
models        loading the saved model that a command names
changes       the steps that unmerge, add and update share
builds        what train and merge print
checkpoints   how a command line names checkpoints that were finetuned elsewhere
output        results on stdout, everything else on stderr
terminal/     what depends on who reads: formats, a terminal or a pipe
interruption  what to say where a command is stopped
faults        exit codes and sentences for exceptions
"""

from hf_clamu.cli.app import main

__all__ = ["main"]
