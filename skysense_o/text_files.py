"""Read text, JSON, YAML and CSV that people and other programs wrote.

Files are UTF-8, with or without a byte order mark. An error says in one line where, what, and what is permitted.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**30
"""Larger documents are refused: parsed, they would take some ten times as much memory."""
REQUIRED = object()
KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


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


def read_json_file(path: str | Path) -> dict | list:
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
        raise ValueError(f"{where} has {len(data):,} bytes: at most {MAX_BYTES:,} are permitted; divide it")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: write it with fewer levels of brackets") from None
    except UnicodeDecodeError as error:
        raise _wrong_encoding(where, error) from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def read_yaml(path: str | Path) -> object:
    """Read a YAML file.

    Raises:
        ValueError: the file is not YAML, or has another encoding.
    """
    try:
        return yaml.safe_load(read_text(path))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Read a file with one JSON object per line; blank lines are skipped.

    Yields:
        (line number from 1, object)

    Raises:
        ValueError: a line is not a JSON object, or the file has another encoding.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # unlike str.splitlines, this keeps U+2028 within a line
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}: {line.strip()[:80]!r}"
                entry = parse_json(line, where)
                if not isinstance(entry, dict):
                    raise ValueError(f"{where} is not a JSON object")
                yield number, entry
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error) from error


def read_csv(path: str | Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Read a CSV file whose first line names its columns.

    Returns:
        the column names, and an iterator over (line number, column -> text).

    Raises:
        ValueError: a line has more fields than there are columns, or the file has another encoding.
    """

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                for row in reader:
                    if None in row:
                        raise ValueError(
                            f"{path}, line {reader.line_num}: more fields than the {len(reader.fieldnames)} columns"
                            f" {', '.join(reader.fieldnames)}: put texts that contain commas in double quotes"
                        )
                    yield reader.line_num, {name: text or "" for name, text in row.items()}
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, error) from error

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            columns = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, error) from error
    return columns, rows()


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


def _short(value: Any) -> str:
    """A value for a message, cut; not `repr`, which fails on deeply nested values."""
    if isinstance(value, list | dict):
        return f"{KINDS[type(value)]} of {len(value)}"
    return json.dumps(value)[:80]


def _wrong_encoding(where: str | Path, error: UnicodeDecodeError) -> ValueError:
    byte = error.object[error.start]
    return ValueError(
        f"{where} is not UTF-8 text (byte 0x{byte:02x} at {error.start}): save it with the encoding UTF-8"
    )
