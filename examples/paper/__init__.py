"""Every table and figure of the ClAMU paper ("Exact unlearning of finetuning data via model merging at scale").

    python -m examples.paper all --scale local --data TOFU_FILE
    python -m examples.paper figure2 --scale smoke
    python -m examples.paper banking77 --scale local --data banking77=FOLDER   # about an hour a seed; not in `all`
    python -m examples.paper report --scale local          # draw the figures, fill paper-results/local/paper.md
    python -m examples.paper report --scale local --docs   # or docs/paper.md

What a scale runs is a recipe (`scales/*.yaml`): data, models, settings, seeds, and the cells of every experiment. The
code is the same for all of them.
"""
