"""Local models that were finetuned elsewhere: plain checkpoints, read tensor by tensor."""
