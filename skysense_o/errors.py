"""Turn user errors into one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from skysense_o.memory_limit import NEEDED, check_memory_limit

USER_ERRORS = (ValueError, KeyError, OSError, ModuleNotFoundError, FloatingPointError)
TRACEBACK = "SKYSENSE_O_TRACEBACK"
"""Environment variable for debugging. "1": every error is raised with its traceback. "unexpected", which the tests set:
only errors outside of USER_ERRORS are raised with their traceback."""
_MEMORY = (
    f"the commands need at least {NEEDED / 1e9:.1f} GB of address space (ulimit -v); use a smaller image, --window, or"
    " fewer processes"
)
LONGEST = 4000
"""Longer messages are cut, because some libraries put whole configs into their messages."""
CLOSED_PIPE = 141
"""Exit code of a command whose output nobody reads any more; the shell reports the same (128 + SIGPIPE)."""

DETECTRON2 = "Detectron2 is not installed, and not on PyPI under its name: python -m skysense_o doctor --install"


def install_extra(extra: str) -> str:
    """The pip command that installs an extra; pip reads the extra's dependencies from the installed package's metadata.

    >>> install_extra("geo")
    'pip install "skysense_o[geo]"'
    """
    return f'pip install "skysense_o[{extra}]"'


def message(error: BaseException) -> str:
    """The text of an error in one line, cut in the middle; for a KeyError without the quotes that Python adds.

    >>> message(KeyError("no data set 'x'"))
    "no data set 'x'"
    """
    error = _first_on_full_disk(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "detectron2":
        return DETECTRON2
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if is_full_disk(error) and error.strerror:
        text = f"{error.filename or 'a file'} could not be written: the disk is full. Make room, or use another folder"
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error means that the disk, or the user's share of it, is full, so that no further file fits."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _first_on_full_disk(error: BaseException) -> BaseException:
    """The error that names the file that did not fit. On a full disk, closing other files fails later as well."""
    found, later, seen = error, None, error
    while is_full_disk(error) and seen is not None:
        # Errors raised by this project have no strerror. If the later of two such errors was raised `from` the earlier
        # one, the later one says more.
        if is_full_disk(seen) and seen.strerror is None and (later is None or later.__cause__ is not seen):
            found = seen
        later, seen = (seen if is_full_disk(seen) and seen.strerror is None else None), seen.__context__
    return found


def is_expected(error: BaseException) -> bool:
    """Whether an error was raised with a message for the user, so that its text is enough.

    A KeyError of a single word comes from a missing key, not from a message.

    >>> is_expected(KeyError("no data set 'x'")), is_expected(KeyError("x")), is_expected(TypeError("x"))
    (True, False, False)
    """
    return isinstance(error, USER_ERRORS) and not (isinstance(error, KeyError) and " " not in message(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch, safetensors or the loader of libraries means that memory is used up."""
    texts = ("annot allocate memory", "can't allocate memory", "not enough memory", "failed to map segment")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def file_error(error: Exception, name: str) -> str:
    """One line for an error that stops one file of a batch, but not the batch.

    Call it in an `except` block: an unexpected error is raised again if TRACEBACK is set.

    Args:
        error: any exception.
        name: the file; put before the text if the text does not name it.

    Returns:
        The text of an expected error. For an unexpected one also its type, and how to get its traceback.
    """
    text = message(error)
    if is_out_of_memory(error) and not os.environ.get(TRACEBACK):
        text = f"there is not enough memory ({text[:200]}): {_MEMORY}"
    elif not is_expected(error):
        if os.environ.get(TRACEBACK):
            raise error
        text = f"unexpected {type(error).__name__}: {text[:500] or 'no message'} ({TRACEBACK}=1 shows where)"
    return text if name in text else f"{name}: {text}"


def exit_code(run: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    An error of USER_ERRORS is printed as one line on stderr. With SKYSENSE_O_TRACEBACK=1 the error is raised instead,
    with its traceback, for debugging. If the program that reads stdout ends early, as `head` does, the command ends
    without a message.

    Args:
        run: the command; returns an exit code, or None for 0.

    Returns:
        The exit code; 2 after an error, CLOSED_PIPE if nobody reads stdout any more.
    """
    check_memory_limit()
    try:
        try:
            return _code_or_message(run)
        finally:
            print(end="", flush=True)  # when Python itself flushes at its end, an error is printed as a traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python will flush once more
        return CLOSED_PIPE


def _code_or_message(run: Callable[[], int | None]) -> int:
    try:
        return run() or 0
    except BrokenPipeError:
        raise
    except USER_ERRORS as error:
        if os.environ.get(TRACEBACK) not in (None, "", "unexpected"):
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError, ImportError) as error:
        if os.environ.get(TRACEBACK) or not is_out_of_memory(error):
            raise
        print(f"error: there is not enough memory ({message(error)[:200]}): {_MEMORY}", file=sys.stderr)
        return 2
