"""The settings of a merged model.

arguments.py  all of them in one class
presets.py    names for settings that go together
"""
