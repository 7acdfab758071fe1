"""Inference per cluster: routing, pipelines, prediction."""
