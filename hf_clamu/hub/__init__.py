"""The Hugging Face Hub: pull, push, erase, archives there."""
