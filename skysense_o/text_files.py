"""Text files that people write: UTF-8, with or without a byte order mark, and errors that name the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import yaml


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
        ValueError: the file is not JSON, or has another encoding.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


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
        raise ValueError(f"{path} is no YAML: {error}") from error


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
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r} is not JSON: {error}") from error
                if not isinstance(entry, dict):
                    raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r} is not a JSON object")
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


def _wrong_encoding(path: str | Path, error: UnicodeDecodeError) -> ValueError:
    byte = error.object[error.start]
    return ValueError(f"{path} is not UTF-8 text (byte 0x{byte:02x} at {error.start}): save it with the encoding UTF-8")
