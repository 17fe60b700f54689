"""Turn user errors into one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, KeyError, OSError, ModuleNotFoundError, FloatingPointError)


def message(error: BaseException) -> str:
    """The text of an error; for a KeyError without the quotes that Python adds.

    >>> message(KeyError("no data set 'x'"))
    "no data set 'x'"
    """
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def exit_code(run: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    An error of USER_ERRORS is printed as one line on stderr. With SKYSENSE_O_TRACEBACK=1 it is raised instead, with its
    traceback, to debug.

    Args:
        run: the command; returns an exit code, or None for 0.

    Returns:
        The exit code; 2 after an error.
    """
    try:
        return run() or 0
    except USER_ERRORS as error:
        if os.environ.get("SKYSENSE_O_TRACEBACK"):
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
