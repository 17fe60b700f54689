"""Command lines: `skysense-o`, and what demo/demo.py and the scripts in tools/ call."""

from skysense_o.cpu_threads import set_thread_environment

set_thread_environment()  # before a command imports torch
