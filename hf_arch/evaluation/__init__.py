"""Measuring trained models: loss, speed, benchmarks, and the text they write."""
