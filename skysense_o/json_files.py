"""Check JSON that people and other programs wrote; an error says in one line where, what, and what is permitted."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

MAX_BYTES = 2**30
"""Larger documents are refused: parsed, they would take some ten times as much memory."""
REQUIRED = object()
KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse a JSON document or line.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: file, or file and line, for messages.

    Raises:
        ValueError: the data is too large, nested too deeply, not UTF-8, or not JSON.

    >>> parse_json("[" * 200_000, "a.json")
    Traceback (most recent call last):
    ValueError: a.json is nested too deeply: write it with fewer levels of brackets
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{where} has {len(data):,} bytes: at most {MAX_BYTES:,} are permitted; divide it")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: write it with fewer levels of brackets") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text (at byte {error.start}): save it with the encoding UTF-8"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def checked(value: Any, kinds: type | tuple[type, ...], where: str) -> Any:
    """Check the type of a value of JSON.

    Args:
        value: what was read.
        kinds: permitted types, of KINDS. float includes whole numbers, and excludes NaN and infinities; true and false
            are no numbers.
        where: what the value is, for the message.

    Returns:
        The value.

    Raises:
        ValueError: the value is of another type.

    >>> checked(3, (str, type(None)), "a.json, line 2: 'split'")
    Traceback (most recent call last):
    ValueError: a.json, line 2: 'split' is 3: text or null is permitted
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, bool):
        right = bool in kinds
    elif isinstance(value, int | float) and float in kinds:
        right = isinstance(value, int) or math.isfinite(value)
    else:
        right = isinstance(value, tuple(kind for kind in kinds if kind is not float))
    if not right:
        raise ValueError(f"{where} is {_short(value)}: {' or '.join(KINDS[kind] for kind in kinds)} is permitted")
    return value


def take(row: Any, key: str, kinds: type | tuple[type, ...], where: str, default: Any = REQUIRED) -> Any:
    """Get a checked value of a JSON object; see `checked`.

    Args:
        row: what was read; anything but an object is an error.
        key, default: the value where the key is missing; without a default, a missing key is an error.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {_short(row)}: an object is permitted")
    if key not in row and default is not REQUIRED:
        return default
    if key not in row:
        raise ValueError(f"{where} has no {key!r}")
    return checked(row[key], kinds, f"{where}: {key!r}")


def numbers(value: Any, count: int, where: str) -> list[float]:
    """Check a list of numbers, such as a point (2) or a box (4); see `checked`."""
    if len(checked(value, list, where)) != count:
        raise ValueError(f"{where} is a list of {len(value)}: {count} numbers are permitted")
    return [checked(number, float, f"{where}: a number") for number in value]


def _short(value: Any) -> str:
    """A value of JSON for a message, cut."""
    if isinstance(value, list | dict):
        return f"{KINDS[type(value)]} of {len(value)}"
    return json.dumps(value)[:80]


def shown(value: Any) -> str:
    """A value of YAML for a message, cut. Not `repr`, which never ends where aliases repeat each other.

    >>> shown({"a": [1, 2], "b": "x" * 500})
    "{'a': [1, 2], 'b': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'}"
    """
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 3, 8, 8, 80, 80
