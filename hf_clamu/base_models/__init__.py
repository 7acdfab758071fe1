"""Base models: loading, identity, processors, adapters."""
