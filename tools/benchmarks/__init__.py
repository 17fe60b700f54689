"""The topics of `tools/benchmark.py`, one module per topic; its function `run()` is the command."""
