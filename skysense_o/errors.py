"""How a command line ends when its user made a mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, KeyError, OSError, ModuleNotFoundError, FloatingPointError)


def message(error: BaseException) -> str:
    """One line for people: a KeyError's text without Python's quotes round it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def exit_code(run: Callable[[], int | None]) -> int:
    """Run a command; what its user can mend becomes one line on stderr and exit code 2.

    With SKYSENSE_O_TRACEBACK=1 the error comes through with its traceback, for who looks for a bug of ours.
    """
    try:
        return run() or 0
    except USER_ERRORS as error:
        if os.environ.get("SKYSENSE_O_TRACEBACK"):
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
