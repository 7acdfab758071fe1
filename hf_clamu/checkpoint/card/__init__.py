"""The model card.

settings.py    what it shows besides what follows from the merged state
model_card.py  the values that it is filled with
template.md    its text, and peft_use.md the part about PEFT, which not every model has
"""
