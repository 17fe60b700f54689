"""Command lines: `skysense-o`, and what demo/demo.py and the scripts in tools/ call."""
