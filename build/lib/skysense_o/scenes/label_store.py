"""Labels and scores of a scene on disk while it is segmented: two plain arrays, and a journal of the finished rows.

A killed run leaves these files behind, and the next run resumes from the journal. Rows enter the journal only after
their bytes were synced to disk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np

from skysense_o.whole_files import full_disk_told

logger = logging.getLogger(__name__)

SCORE_STEPS = 250
"""Scores are stored as bytes, in steps of 1/250; the byte 250 is a score of 1."""
NO_SCORE = 255
"""The stored byte of pixels without data."""


class LabelStore:
    """Labels and scores of a scene, (H,W) each, and the number of finished rows per strip of this process.

    Labels are uint8, or uint16 for more than 254 ids; the largest value of the type means "no data". Scores are uint8,
    see SCORE_STEPS.
    """

    def __init__(self, folder: Path, size: tuple[int, int], ids: int, settings: dict, process: int = 0) -> None:
        """
        Args:
            folder: is created if necessary.
            size: (H,W) of the scene.
            ids: number of ids that the labels may have.
            settings: everything that the result depends on. The journal of a run with other settings is discarded.
            process: index of the process; each has its own journal.
        """
        self.folder, self.size, self.process = folder, size, process
        self.dtype = np.dtype(np.uint8 if ids <= 254 else np.uint16)
        self.nodata = int(np.iinfo(self.dtype).max)
        header = json.dumps({"size": list(size), "ids": ids, **settings}, sort_keys=True)
        self.journal = folder / f"journal_{process}.jsonl"
        self.done: dict[int, int] = {}
        if self.journal.is_file():
            self.done = self._read_journal(header)
        if not self.done:
            folder.mkdir(parents=True, exist_ok=True)
            with full_disk_told(self.journal):
                self.journal.write_text(header + "\n")
        self._files: dict[str, int] = {}
        try:
            for name, dtype in (("labels", self.dtype), ("score", np.dtype(np.uint8))):
                self._open(name, size, dtype)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, size: tuple[int, int], dtype: np.dtype) -> None:
        handle = os.open(self.folder / f"{name}.raw", os.O_RDWR | os.O_CREAT, 0o644)
        self._files[name] = handle
        bytes_wanted = size[0] * size[1] * dtype.itemsize
        if os.fstat(handle).st_size != bytes_wanted:
            os.ftruncate(handle, bytes_wanted)

    def _read_journal(self, header: str) -> dict[int, int]:
        lines = self.journal.read_text().split("\n")
        if lines[0] != header:
            logger.warning("%s belongs to a run with other settings: starting from the beginning", self.folder.name)
            return {}
        done = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:  # the run was killed while it wrote this line
                continue
            done[entry["strip"]] = entry["rows"]
        return done

    def write(self, rows: range, cols: range, labels: np.ndarray, score: np.ndarray, valid: np.ndarray) -> None:
        """Store a block of the scene.

        Args:
            rows, cols: where the block lies in the scene.
            labels: ids (rows,cols).
            score: probabilities (rows,cols), 0..1.
            valid: bool (rows,cols), False where there is no data.
        """
        ids = np.where(valid, labels, self.nodata).astype(self.dtype)
        steps = np.where(valid, np.rint(score * SCORE_STEPS), NO_SCORE).astype(np.uint8)
        for name, block in (("labels", ids), ("score", steps)):
            with full_disk_told(self.folder / f"{name}.raw"):
                for r, line in zip(rows, block):
                    self._put(name, line, (r * self.size[1] + cols.start) * block.itemsize)

    def _put(self, name: str, line: np.ndarray, offset: int) -> None:
        data = memoryview(np.ascontiguousarray(line)).cast("B")
        while data:  # pwrite may write a part only
            written = os.pwrite(self._files[name], data, offset)
            data, offset = data[written:], offset + written

    def finished(self, strip: int, rows: int) -> None:
        """Record in the journal that this strip is final down to row `rows`."""
        for name, handle in self._files.items():
            with full_disk_told(self.folder / f"{name}.raw"):
                os.fsync(handle)
        with full_disk_told(self.journal), open(self.journal, "a") as file:
            file.write(json.dumps({"strip": strip, "rows": rows}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[strip] = rows

    def read(self, name: str, rows: range, dtype: np.dtype | None = None) -> np.ndarray:
        """Read whole rows of "labels" or "score": array (rows,W).

        Raises:
            OSError: the file was cut short.
        """
        dtype = np.dtype(np.uint8) if name == "score" else dtype or self.dtype
        width = self.size[1]
        data = bytearray(len(rows) * width * dtype.itemsize)
        view, offset = memoryview(data), rows.start * width * dtype.itemsize
        while view:
            length = os.preadv(self._files[name], [view], offset)
            if not length:
                raise OSError(f"{self.folder / name}.raw is cut short: delete the folder {self.folder}")
            view, offset = view[length:], offset + length
        return np.frombuffer(data, dtype).reshape(len(rows), width)

    def bands(self, height: int = 512) -> list[range]:
        """All rows of the scene, in ranges of `height` rows."""
        return [range(r, min(r + height, self.size[0])) for r in range(0, self.size[0], height)]

    def close(self) -> None:
        """Close the files; they stay on disk."""
        for handle in self._files.values():
            os.close(handle)
        self._files = {}

    def remove(self) -> None:
        """Close the files and delete the folder."""
        self.close()
        shutil.rmtree(self.folder)
