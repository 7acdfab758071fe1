"""What leaves a merged model for tools that do not know of it.

adapters.py  clusters as plain PEFT adapters, and routes to them
low_rank.py  LoRA adapters that approximate whole weights
routes.py    `routes.json`: which adapter answers for which task
proof.py     an export is loaded as others load it, and asked
"""
