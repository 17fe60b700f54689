"""Results of a scene on disk while it is being made: plain arrays, and a journal of which of their rows are final.

A killed run leaves them behind; the next one goes on from the journal. A row is in the journal only after its bytes
were forced to the disk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

SCORE_STEPS = 250
"""A score of 1 in a stored byte: scores are kept in steps of 0.004."""
NO_SCORE = 255


class LabelStore:
    """Labels and scores of a scene, (H,W) each, and how far each strip of each process has come.

    labels: uint8, or uint16 above 254 names, whose largest value stands for "no data". score: uint8, see SCORE_STEPS.
    """

    def __init__(self, folder: Path, size: tuple[int, int], ids: int, settings: dict, process: int = 0) -> None:
        """
        Args:
            folder: made if need be. ids: how many ids the labels may have. process: which journal is ours.
            settings: all that the result depends on; what a run with others left behind is thrown away.
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
            logger.warning("%s is of a run with other settings: begun anew", self.folder.name)
            return {}
        done = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:  # the line that was being written when the run was killed
                continue
            done[entry["strip"]] = entry["rows"]
        return done

    def write(self, rows: range, cols: range, labels: np.ndarray, score: np.ndarray, valid: np.ndarray) -> None:
        """Put a block in its place. labels: ids. score: 0..1. valid: elsewhere the block has no data."""
        ids = np.where(valid, labels, self.nodata).astype(self.dtype)
        steps = np.where(valid, np.rint(score * SCORE_STEPS), NO_SCORE).astype(np.uint8)
        for name, block in (("labels", ids), ("score", steps)):
            for r, line in zip(rows, block):
                self._put(name, line, (r * self.size[1] + cols.start) * block.itemsize)

    def _put(self, name: str, line: np.ndarray, offset: int) -> None:
        data = memoryview(np.ascontiguousarray(line)).cast("B")
        while data:  # a write may be short
            written = os.pwrite(self._files[name], data, offset)
            data, offset = data[written:], offset + written

    def finished(self, strip: int, rows: int) -> None:
        """Rows of this strip, from the top to `rows`, are final."""
        for handle in self._files.values():
            os.fsync(handle)
        with open(self.journal, "a") as file:
            file.write(json.dumps({"strip": strip, "rows": rows}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[strip] = rows

    def read(self, name: str, rows: range, dtype: np.dtype | None = None) -> np.ndarray:
        """(rows,W) of "labels" or "score", whole rows."""
        dtype = np.dtype(np.uint8) if name == "score" else dtype or self.dtype
        width = self.size[1]
        data = bytearray(len(rows) * width * dtype.itemsize)
        view, offset = memoryview(data), rows.start * width * dtype.itemsize
        while view:
            got = os.preadv(self._files[name], [view], offset)
            if not got:
                raise OSError(f"{self.folder / name}.raw is shorter than it was made: remove {self.folder}")
            view, offset = view[got:], offset + got
        return np.frombuffer(data, dtype).reshape(len(rows), width)

    def bands(self, height: int = 512) -> list[range]:
        """All rows, in ranges of `height`."""
        return [range(r, min(r + height, self.size[0])) for r in range(0, self.size[0], height)]

    def close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        self._files = {}

    def remove(self) -> None:
        """The result is written: the folder goes."""
        self.close()
        shutil.rmtree(self.folder)
