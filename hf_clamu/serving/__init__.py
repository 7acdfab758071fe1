"""Inference per cluster.

auto_routing      the cluster of an input by the base model's features
conversations     the tokens of conversations that are to be answered
routing           which weights serve an input, and selecting them
pipelines         transformers' pipelines, served per cluster and per task
recipe_pipelines  pipelines that encode inputs as the model's recipe did
text2text         a pipeline for encoder-decoders
vllm_resolver     a plugin of vLLM that answers task ids with exported adapters
prediction        predictions for rows, each served by its task's cluster
inputs            rows from what a person types or gives
"""
