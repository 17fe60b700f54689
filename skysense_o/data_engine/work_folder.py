"""The work folder, which all steps share. Files are written atomically: each file is either complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skysense_o.image_io import read_image
from skysense_o.run_lock import run_lock
from skysense_o.whole_files import full_disk_told, whole, write_json
from skysense_o.workers import Each

if TYPE_CHECKING:
    import pyarrow as pa

STEPS = ("collect", "deduplicate", "propose", "name", "review", "graph", "publish")
WRITES = {
    "collect": ("tiles", "catalog.jsonl", "catalog.parquet", "catalog_errors.jsonl", "soft"),
    "deduplicate": ("vectors", "duplicates.parquet"),
    "propose": ("regions",),
    "name": ("names", "synonyms.json"),
    "graph": ("graph",),
    "publish": ("set", "set.part", "set.old"),
}
"""Files that each step writes and --restart removes; the reviewers' decisions in review/ are never removed."""
LIBRARIES = ("torch", "numpy", "pillow")


class WorkFolder:
    """Paths and tables of a work folder, and the record of each step's options (engine.json)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @contextmanager
    def step(self, step: str, options: dict, restart: bool = False) -> Iterator[None]:
        """Context manager for one step: records its options, and resumes an earlier run with the same options.

        Args:
            step: one of STEPS.
            options: JSON values of all options on which the step's files depend.
            restart: first remove the files of this step and of all later steps.

        Raises:
            OSError: another run works in the folder.
            ValueError: the step ran before with other options; or `restart` would remove files that reviewers decided
                on.
        """
        lock = run_lock(self / ".lock", self.folder, "give another --work")
        with lock, self._recorded(step, options, restart):
            yield

    @contextmanager
    def _recorded(self, step: str, options: dict, restart: bool) -> Iterator[None]:
        path = self / "engine.json"
        steps = read_json(path) if path.is_file() else {}
        if restart:
            self._forget(step, steps)
        before = steps.get(step, {}).get("options", options)
        for key in sorted({*before, *options}):
            then, now = before.get(key), options.get(key)
            if then != now:
                raise ValueError(
                    f"{step} ran with {key} {then!r} in {self.folder} before, now it is {now!r}: give the same value as"
                    " before, another --work, or --restart, which repeats this step and all later ones"
                )
        entry = {"options": options, "versions": {name: version(name) for name in LIBRARIES}}
        write_json(path, {**steps, step: entry})
        try:
            yield
        except (ValueError, KeyError, OSError):
            if step not in steps and not any((self / name).exists() for name in WRITES[step]):
                write_json(path, steps)  # an option was wrong, so the step did not run
            raise

    def options(self, step: str) -> dict:
        """The recorded options of a step; {} if it did not run."""
        path = self / "engine.json"
        return read_json(path).get(step, {}).get("options", {}) if path.is_file() else {}

    def _forget(self, step: str, steps: dict) -> None:
        first = STEPS.index(step)
        decisions = self / "review/decisions.jsonl"
        if first < STEPS.index("review") and decisions.is_file():
            raise ValueError(f"{decisions} holds decisions on regions that --restart would remove: move it away first")
        for later in STEPS[first:]:
            steps.pop(later, None)
            for name in WRITES.get(later, ()):
                path = self / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def table(self, name: str, by: str) -> list[dict]:
        """Read the rows of a Parquet file.

        Args:
            name: the file's name.
            by: the step that writes the file, for the error message.

        Raises:
            FileNotFoundError: there is no such file.
        """
        import pyarrow.parquet as parquet

        if not (self / name).is_file():
            raise FileNotFoundError(f"no {name} in {self.folder}: run the step {by} first")
        return parquet.read_table(self / name).to_pylist()

    def catalog(self) -> list[dict]:
        """The catalogue: one row per tile, sorted by tile."""
        return self.table("catalog.parquet", "collect")

    def kept(self) -> list[dict]:
        """The catalogue without the tiles that the step "deduplicate" left out, if that step ran."""
        rows = self.catalog()
        if not (self / "duplicates.parquet").is_file():
            return rows
        left_out = {row["tile"] for row in self.table("duplicates.parquet", "deduplicate") if not row["kept"]}
        return [row for row in rows if row["tile"] not in left_out]

    def image(self, row: dict) -> np.ndarray:
        """The pixels of a tile, uint8 (H,W,3); row: its catalogue row."""
        return read_image(self / row["file"]).rgb

    def regions(self, tile: str) -> np.ndarray:
        """The regions of a tile: uint16 (H,W), regions 1..R and 0 for pixels of no region.

        Raises:
            FileNotFoundError: step "propose" has not written them.
        """
        path = self / f"regions/{tile}.png"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: run the step propose first")
        return read_map(path)


def each_tile(each: Each, function: Callable[[Any, dict], str], rows: list[dict], step: str) -> list[dict]:
    """Call function(model, row) for each catalogue row. The function returns an error message for this tile, or "".

    Returns:
        {"tile", "error"} for each tile with an error, or whose worker was lost; sorted by tile.
    """
    done = each(function, rows, desc=step, unit="tile", lost=lambda row, reason: reason)
    errors = [{"tile": row["tile"], "error": error} for row, error in done if error]
    return sorted(errors, key=lambda error: error["tile"])


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_map(path: Path, array: np.ndarray) -> None:
    """Write uint8 (H,W), uint8 (H,W,3) or uint16 (H,W) as a PNG."""
    with whole(path) as part:
        Image.fromarray(array).save(part, format="PNG")


def read_map(path: Path) -> np.ndarray:
    """Read a PNG with one channel that this project wrote: uint8 or uint16 (H,W)."""
    with Image.open(path) as image:
        array = np.asarray(image)
    return array.astype(np.uint16) if array.dtype != np.uint8 else array


def write_table(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows as Parquet; `schema` has the columns and their types."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with whole(path) as part:
        parquet.write_table(pa.Table.from_pylist(rows, schema), part)


class Journal:
    """An append-only file of JSON lines. Opening it drops an incomplete last line, which a killed run may have left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.is_file() else b""
        whole_lines = data[: data.rfind(b"\n") + 1]
        if whole_lines != data:
            with whole(path) as part:
                part.write_bytes(whole_lines)
        self.lines: list[dict] = [json.loads(line) for line in whole_lines.splitlines()]
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def add(self, line: dict) -> None:
        with full_disk_told(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        self.lines.append(line)

    def close(self) -> None:
        self._file.close()
