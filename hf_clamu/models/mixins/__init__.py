"""What users call on a merged model, by concern; `ClamuModel` joins all of them. Each mixin builds on the one before.

inspection.py  what is merged
serving.py     which cluster the live weights serve, for one thread or many
files.py       saving, pushing and exporting
acceptance.py  putting a request, and accepting its result
requests.py    forgetting, adding and updating tasks, and verifying
proving.py     what an owner can check with their own rows
"""
