"""Requests to forget that were received for a model, from the day they came until the model is without the task.

They are kept in `requests/MODEL/` beside the model. Whether a request was carried out, its receipt says, as ever; what
is kept here is what nobody else knows: when it came, when it is due, what became of the last attempt.

folders.py    where they are kept
received.py   one request, as it is kept
book.py       all requests of a model: adding, ordering, settling, removing
checking.py   whether a request can be carried out, said without naming other owners
reading.py    requests in a CSV or JSON lines
working.py    what the one worker is doing at the moment, and whether it lives
states.py     what state a request is in, in one word and a sentence
findings.py   results of verification, audit and attack, by the state they are of
"""
