"""The Hugging Face Hub.

errors.py      what its client raises, in one sentence
repository.py  the files of a commit
pull.py        bringing a saved model from there
push.py        pushing one as a single commit
erase.py       erasing what older commits still hold
archive.py     an archive of integer task vectors in a private repository or bucket
vector_places.py  what such an archive asks of a repository, and of a bucket
descendants.py  models that name another as their base
"""
