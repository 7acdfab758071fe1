"""What depends on who reads: a person at a terminal, a pipe, a program.

formats        human, json, agent and quiet: which one a command was asked for
format_option  `--format` for every command, in one place
agent          results as plain lines and tables, for programs that read text
completion     what the shell offers after Tab
program        `clamu`, `hf-clamu` or `hf clamu`: how it was started
screen         colours, and tables that fit
bars           how far a command is, and the time left
"""
