"""What surrounds a change of a merged model: the requests it answers, its note beside the model, its receipts.

queue.py          a file of requests to forget, and which of them are done already
target.py         the saved model that a change is made to: locked, recovered, replaced
build_target.py   the folder that a build saves to
request_files.py  journal, receipts and archive of a request, of a command or on a live model
pending.py        changes that are noted beside a model before it is replaced
amending.py       adding to a receipt what became known later
receipts.py       what an auditor gets of a request
recovery.py       what is left to do for saved changes, by this process or by one that came after it
"""
