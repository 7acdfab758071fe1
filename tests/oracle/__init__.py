"""Records what the package does at tiny sizes, and compares two records: proof that a change keeps behaviour.

`__main__` has the commands. Nothing here imports a module of the package by its path, only public names of the root
and `hf_clamu.cli.main`, so that the same script runs before and after every file has moved.

    cells        factors, their covering selection, recipes and rows
    double       the Hub that the real client speaks to, in this process
    steps        runs commands and says what they wrote, answered and printed
    chains       the commands of each cell
    calls        the same from Python
    refusals     what is refused, with exit code and type
    interface    public names, signatures, options, and what importing costs
    models       saved models and unfinished runs, and what another version makes of them
    definitions  a hash of every definition, wherever it stands
    comparing    differences of two records
"""
