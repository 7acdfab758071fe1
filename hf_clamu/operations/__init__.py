"""Changes of a merged model's state. Each gives a new checkpoint and leaves the old one as it is.

build.py          building from all tasks, the first time or again
unmerge.py        forgetting tasks
add.py            merging more tasks
update.py         giving merged tasks other data
local_merge.py    building from local models that were finetuned elsewhere
request.py        what a request is given, what it checks first, and what it answers
context.py        what a change runs on
configuration.py  the configuration of the result
resolution.py     learning rate and grid where a recipe leaves them open
data.py           the data of merged tasks
snapshots.py      their rows in a snapshot: kept before a save, destroyed after it
intake/           requests that were received, and what became of them
effects/          what a change means for the tasks that stay
signed/           signatures of models and receipts
lifecycle/        queue of requests, pending changes, receipts, recovery after a crash
"""
