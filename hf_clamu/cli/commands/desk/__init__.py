"""Commands for the person who answers requests.

queue.py     `clamu queue add`, `list`, `run` and `remove`: requests from the day they came until they are answered
report.py    `clamu report`: the evidence of a request
working.py   what `clamu queue run` does with the requests that it takes
"""
