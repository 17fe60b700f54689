"""The topics of `tools/benchmark.py`, one module each; `run()` is its command."""
