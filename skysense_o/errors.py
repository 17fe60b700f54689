"""Turn user errors into one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USER_ERRORS = (ValueError, KeyError, OSError, ModuleNotFoundError, FloatingPointError)
TRACEBACK = "SKYSENSE_O_TRACEBACK"
"""Environment variable to debug with. "1": every error is raised with its traceback. "unexpected", as in the tests:
only errors that are not USER_ERRORS are."""
LONGEST = 4000
"""Longer messages are cut: some libraries put whole configs into theirs."""


DETECTRON2 = "Detectron2 is not installed, and not on PyPI under its name: python -m skysense_o doctor --install"


def install_extra(extra: str) -> str:
    """The command that installs an extra of this package, which pip takes from the installed package.

    >>> install_extra("geo")
    'pip install "skysense_o[geo]"'
    """
    return f'pip install "skysense_o[{extra}]"'


def message(error: BaseException) -> str:
    """The text of an error in one line, cut in the middle; for a KeyError without the quotes that Python adds.

    >>> message(KeyError("no data set 'x'"))
    "no data set 'x'"
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "detectron2":
        return DETECTRON2
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def is_expected(error: BaseException) -> bool:
    """Whether an error was raised to tell a user something, so that its text is enough.

    A KeyError of a single word comes from a missing key, not from a message.

    >>> is_expected(KeyError("no data set 'x'")), is_expected(KeyError("x")), is_expected(TypeError("x"))
    (True, False, False)
    """
    return isinstance(error, USER_ERRORS) and not (isinstance(error, KeyError) and " " not in message(error))


def file_error(error: Exception, name: str) -> str:
    """One line for an error that ends the work on one file of a batch, but not the batch.

    Call it in an `except` block: an unexpected error is raised again if TRACEBACK is set.

    Args:
        error: any exception.
        name: the file; put before the text if the text does not name it.

    Returns:
        The text of an expected error. For an unexpected one also its type, and how to get its traceback.
    """
    text = message(error)
    if not is_expected(error):
        if os.environ.get(TRACEBACK):
            raise error
        text = f"unexpected {type(error).__name__}: {text[:500] or 'no message'} ({TRACEBACK}=1 shows where)"
    return text if name in text else f"{name}: {text}"


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
        if os.environ.get(TRACEBACK) not in (None, "", "unexpected"):
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
