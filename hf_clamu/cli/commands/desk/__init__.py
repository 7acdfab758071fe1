"""Commands for the person who answers requests.

queue.py     `clamu queue add`, `list`, `run` and `remove`: requests from the day they came until they are answered
working.py   what `clamu queue run` does with the requests that it takes
"""
