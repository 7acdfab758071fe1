"""What leaves a merged model for tools that do not know of it.

proof.py     an export is loaded as others load it, and asked
"""
