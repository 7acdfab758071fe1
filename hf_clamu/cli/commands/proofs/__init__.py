"""The commands of `clamu` for those who check.

attack  `attack`: what a model leaks of a task, before and after it is forgotten
"""
