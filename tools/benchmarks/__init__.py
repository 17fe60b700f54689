"""What `tools/benchmark.py` measures, a topic a file: `add_options(parser)` and `measure(args) -> dict`."""
