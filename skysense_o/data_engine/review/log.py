"""The log of the reviewers' decisions, review/decisions.jsonl: one decision per line, append-only, synced to disk.

A decision is valid until its reviewer undoes it (`undo` is a line, too) or decides again on the same region.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from skysense_o.text_files import checked, parse_json, take
from skysense_o.whole_files import full_disk_told

ACTIONS = ("accept", "rename", "reject", "merge", "split", "undo")
Box = tuple[int, int, int, int]
TYPES = {
    "tile": str, "region": int, "reviewer": str, "action": str, "name": (str, type(None)), "into": (int, type(None)),
    "box": (list, type(None)), "time": str, "mask": (str, type(None)), "round": int,
}  # fmt: skip
"""JSON types of a decision's values."""


@dataclass(frozen=True)
class Decision:
    """One line of the log.

    Attributes:
        tile: the tile's id.
        region: the region's number.
        reviewer: name of the reviewer.
        action: one of ACTIONS.
        name: the class name (for accept and rename).
        into: the region to merge into (for merge), or the number of the new piece (for split).
        box: half-open XYXY box in pixels (for split).
        time: ISO 8601, UTC.
        mask: COCO's RLE counts of the piece, if it is not the whole box (for split).
        round: 1 for independent decisions, 2 and up for decisions on disagreements.
    """

    tile: str
    region: int
    reviewer: str
    action: str
    name: str | None = None
    into: int | None = None
    box: Box | None = None
    time: str = ""
    mask: str | None = None
    round: int = 1

    @classmethod
    def read(cls, line: bytes) -> Decision:
        """Parse a line of the log.

        Raises:
            ValueError: the line is not a decision, or has an unknown action.
        """
        row = checked(parse_json(line, "the line"), dict, "the line")
        if unknown := set(row) - set(TYPES):
            raise ValueError(f"unknown keys {', '.join(sorted(unknown))}: use only {', '.join(TYPES)}")
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        values = {name: take(row, name, TYPES[name], "the line") for name in TYPES if name in needed or name in row}
        decision = cls(**values)
        if decision.action not in ACTIONS:
            raise ValueError(f"unknown action {decision.action!r}: choose one of {', '.join(ACTIONS)}")
        if decision.action in ("merge", "split") and not isinstance(decision.into, int):
            raise ValueError(f"a {decision.action} needs 'into', the number of a region")
        box = None if decision.box is None else tuple(checked(n, int, "a number of 'box'") for n in decision.box)
        if (box is None and decision.action == "split") or (box is not None and len(box) != 4):
            raise ValueError("a split needs 'box', four whole numbers")
        return replace(decision, box=box)

    def content(self) -> tuple:
        """What was decided, without reviewer and time."""
        return self.tile, self.region, self.action, self.name, self.into


class Piece(NamedTuple):
    """What a split removes from a region: its pixels inside the box and, if there is one, inside the mask."""

    region: int
    box: Box
    mask: str | None


class DecisionLog:
    """The log in memory, synchronised with the file. Several pages and processes may write to the file at once.

    Attributes:
        lines: tile -> reviewer -> all decisions, in order.
        history: reviewer -> valid decisions on all tiles, in order.
        pieces: tile -> number -> piece, for every split by any reviewer; equal splits have the same number.
        bad: messages about lines that were skipped.
    """

    def __init__(self, work: Path) -> None:
        self.path = work / "review" / "decisions.jsonl"
        self.lines: dict[str, dict[str, list[Decision]]] = defaultdict(lambda: defaultdict(list))
        self.history: dict[str, list[Decision]] = defaultdict(list)
        self.pieces: dict[str, dict[int, Piece]] = defaultdict(dict)
        self.bad: list[str] = []
        self._count, self._offset = 0, 0
        self._mutex = threading.RLock()
        self.refresh()

    def standing(self, tile: str, reviewer: str, rounds: int | None = None) -> list[Decision]:
        """A reviewer's decisions on a tile that were not undone, in order.

        Args:
            rounds: only use decisions of the first `rounds` rounds; None: of all rounds.
        """
        decisions: list[Decision] = []
        for decision in self.lines.get(tile, {}).get(reviewer, ()):
            if rounds is None or decision.round <= rounds:
                _apply(decisions, decision)
        return decisions

    def refresh(self) -> None:
        """Read lines that other processes have appended since the last call."""
        if self.path.exists():
            with self._locked() as file:
                self._read(file)

    def append(self, decision: Decision, highest: int = 0) -> Decision:
        """Append a decision and sync it to disk.

        Args:
            decision: the decision to write; this method sets its time.
            highest: highest number of the tile's proposed regions; the new piece of a split gets a higher number.

        Returns:
            the decision as written.
        """
        with self._locked() as file:
            self._read(file)
            if decision.action == "split":
                decision = replace(decision, into=self._number(decision, highest))
            decision = replace(decision, time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
            size = os.fstat(file.fileno()).st_size
            try:
                with full_disk_told(self.path):
                    _write(file, json.dumps(asdict(decision)).encode() + b"\n")
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # do not leave half a line
                raise
            self._read(file)
        return decision

    @contextmanager
    def _locked(self):
        """Open the file with an exclusive lock, against other threads and processes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._mutex, open(self.path, "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read(self, file) -> None:
        file.seek(self._offset)
        data = file.read()
        if data and not data.endswith(b"\n"):  # a writer died while writing: end its incomplete line
            try:
                file.write(b"\n")
                data += b"\n"
            except OSError:  # the disk is full, but complete lines can still be read
                data = data[: data.rfind(b"\n") + 1]
        for line in data.splitlines():
            self._count += 1
            try:
                self._take(Decision.read(line))
            except ValueError as error:
                self.bad.append(f"{self.path.name}, line {self._count}, is skipped: {error}")
        self._offset += len(data)

    def _take(self, decision: Decision) -> None:
        self.lines[decision.tile][decision.reviewer].append(decision)
        _apply(self.history[decision.reviewer], decision)
        if decision.action == "split":
            self.pieces[decision.tile][decision.into] = Piece(decision.region, decision.box, decision.mask)

    def _number(self, split: Decision, highest: int) -> int:
        piece, known = Piece(split.region, split.box, split.mask), self.pieces[split.tile]
        same = [number for number, other in known.items() if other == piece]
        return same[0] if same else max(highest, *known, 0) + 1


def _write(file: io.FileIO, data: bytes) -> None:
    while data:  # one call may write only a part of the data
        data = data[file.write(data) :]


def _apply(standing: list[Decision], decision: Decision) -> None:
    """Append a decision to the valid decisions; an undo instead removes the latest decision on its region."""
    if decision.action != "undo":
        standing.append(decision)
        return
    for k in reversed(range(len(standing))):
        if (standing[k].tile, standing[k].region) == (decision.tile, decision.region):
            del standing[k]
            return
