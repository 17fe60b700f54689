"""Read text, JSON, YAML and CSV that people and other programs wrote.

Files are UTF-8, with or without a byte order mark. An error states in one line the place, the value and what is
permitted.
"""

from __future__ import annotations

import csv
import json
import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**30
"""Larger documents are refused, because parsing takes about ten times as much memory."""
REQUIRED = object()
KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a key that comes twice in a mapping; plain YAML silently keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} comes twice on line {node.start_mark.line + 1} or below: keep one of them")
        return super().construct_mapping(node, deep)


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file; a byte order mark, as Windows programs write it, is left out.

    Raises:
        ValueError: the file has another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error) from error


def read_lines(path: str | Path) -> list[str]:
    """Read a list with one entry per line, without spaces at the ends and without blank lines.

    Raises:
        ValueError: the file has another encoding.
    """
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_json_file(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: see `parse_json`.
    """
    return parse_json(Path(path).read_bytes(), str(path))


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
        raise ValueError(f"{where} has {len(data):,} bytes: divide it into files of at most {MAX_BYTES:,}")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: write it with fewer levels of brackets") from None
    except UnicodeDecodeError as error:
        raise _wrong_encoding(where, error) from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        ValueError: the file is not YAML, has a key twice, or has another encoding.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
        text: a whole document.
        where: file, for messages.

    Raises:
        ValueError: it is not YAML, is nested too deeply, or has a key twice.

    >>> parse_yaml("a: [1, 2]", "a.yaml")
    {'a': [1, 2]}
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: write it with fewer levels of brackets") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date such as 2020-99-99 gives a ValueError
        raise ValueError(f"{where} is not YAML: {error}") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Read a file with one JSON object per line; blank lines are skipped.

    Yields:
        (line number from 1, object)

    Raises:
        ValueError: a line is not a JSON object, or the file has another encoding.
    """
    for number, line in numbered_lines(path):
        entry = parse_json(line, f"{path}, line {number}: {line[:80]!r}")
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not a JSON object")
        yield number, entry


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file one by one, without blank ones.

    Yields:
        (line number from 1, line without spaces at the ends)

    Raises:
        ValueError: the file has another encoding.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # unlike str.splitlines, this keeps U+2028 within a line
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error) from error


def read_csv(path: str | Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Read a CSV file whose first line names its columns.

    Returns:
        the column names, and an iterator over (line number, column -> text).

    Raises:
        ValueError: a line has more fields than there are columns, a column comes twice, columns are not separated by
            commas, or the file has another encoding.
    """

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        with _csv_errors(path), open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, columns, strict=True)
            next(reader, None)
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: more fields than the {len(columns)} columns"
                        f" {', '.join(columns)}: put texts that contain commas in double quotes"
                    )
                yield reader.line_num, {name: text or "" for name, text in row.items()}

    with _csv_errors(path), open(path, newline="", encoding="utf-8-sig") as file:
        columns = [name.strip() for name in next(csv.reader(file, strict=True), [])]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    other = next((sign for sign in ";\t" if len(columns) == 1 and sign in columns[0]), None)
    if twice is not None or other:
        wrong = f"the column {twice!r} twice" if twice is not None else f"columns separated by {other!r}"
        raise ValueError(f"{path} has {wrong}: give each column its own name, and separate them with commas")
    return columns, rows()


@contextmanager
def _csv_errors(path: str | Path) -> Iterator[None]:
    """Add the file's name to errors of the module csv."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error) from error
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}; is a double quote never closed?") from error


def checked(value: Any, kinds: type | tuple[type, ...], where: str) -> Any:
    """Check the type of a value of JSON.

    Args:
        value: what was read.
        kinds: permitted types, of KINDS. float includes whole numbers, and excludes NaN and infinities; true and false
            are not numbers.
        where: what the value is, for the message.

    Returns:
        The value.

    Raises:
        ValueError: the value is of another type.

    >>> checked(3, (str, type(None)), "a.json, line 2: 'split'")
    Traceback (most recent call last):
    ValueError: a.json, line 2: 'split' is 3: it must be text or null
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, bool):
        right = bool in kinds
    elif isinstance(value, int | float) and float in kinds:
        right = isinstance(value, int) or math.isfinite(value)
    else:
        right = isinstance(value, tuple(kind for kind in kinds if kind is not float))
    if not right:
        raise ValueError(f"{where} is {_short(value)}: it must be {' or '.join(KINDS[kind] for kind in kinds)}")
    return value


def take(row: Any, key: str, kinds: type | tuple[type, ...], where: str, default: Any = REQUIRED) -> Any:
    """Get a checked value of a JSON object; see `checked`.

    Args:
        row: what was read; a value that is not an object is an error.
        key: key of the value. default: returned if the key is missing; without a default, a missing key is an error.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {_short(row)}: it must be an object")
    if key not in row and default is not REQUIRED:
        return default
    if key not in row:
        raise ValueError(f"{where} has no {key!r}")
    return checked(row[key], kinds, f"{where}: {key!r}")


def numbers(value: Any, count: int, where: str) -> list[float]:
    """Check a list of numbers, such as a point (2) or a box (4); see `checked`."""
    if len(checked(value, list, where)) != count:
        raise ValueError(f"{where} is a list of {len(value)}: expected {count} numbers")
    return [checked(number, float, f"{where}: a number") for number in value]


def shown(value: Any) -> str:
    """A YAML value as shortened text for a message; `repr` would never end where aliases repeat each other.

    >>> shown({"a": [1, 2], "b": "x" * 500})
    "{'a': [1, 2], 'b': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'}"
    """
    return _REPR.repr(value)


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 3, 8, 8, 80, 80


def _short(value: Any) -> str:
    """A value as shortened text for a message; `repr` would fail on deeply nested values."""
    if isinstance(value, list | dict):
        return f"{KINDS[type(value)]} of {len(value)}"
    return json.dumps(value)[:80]


def _wrong_encoding(where: str | Path, error: UnicodeDecodeError) -> ValueError:
    byte = error.object[error.start]
    return ValueError(
        f"{where} is not UTF-8 text (byte 0x{byte:02x} at {error.start}): save it with the encoding UTF-8"
    )
