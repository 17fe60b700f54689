"""Command lines: `skysense-o`, and what demo/demo.py and the scripts in tools/ call."""

from skysense_o.cpu_threads import set_thread_environment
from skysense_o.memory_limit import check_memory_limit

set_thread_environment()  # before torch is imported, because OpenMP reads these settings then
check_memory_limit()  # before torch is imported, which would fail with a traceback
