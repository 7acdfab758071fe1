"""What the desk shows of a model beside its requests, without gradio.

model_view.py  clusters, a map of tasks, and what requests changed
trying.py      the same input through base, global model, clusters and tasks, before and after requests
"""
