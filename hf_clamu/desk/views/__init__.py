"""What the desk shows of a model beside its requests, without gradio.

trying.py    the same input through base, global model, clusters and tasks, before and after requests
"""
