"""What people decided: review/decisions.jsonl, one decision a line, appended and synced, never changed.

A decision stands until its reviewer takes it back (`undo`, a line too) or says something else of the same region.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

ACTIONS = ("accept", "rename", "reject", "merge", "split", "undo")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Decision:
    """A line of the log.

    name: of accept and rename. into: the region merged into, or the number of the piece that a split cuts out.
    box: of a split, x0, y0, x1, y1 in pixels, the last ones outside. mask: COCO's run-length counts of a piece that is
    no box. round: 1 where reviewers work by themselves, 2 and more where they look at what they disagree on.
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
        """
        Raises:
            ValueError: not a decision, or one of another kind.
        """
        try:
            found = cls(**json.loads(line))
            box = None if found.box is None else tuple(map(int, found.box))
        except TypeError as error:  # no object, or keys that are none of ours
            raise ValueError(str(error)) from error
        if found.action not in ACTIONS:
            raise ValueError(f"{found.action!r} is no action: {', '.join(ACTIONS)}")
        if found.action in ("merge", "split") and not isinstance(found.into, int):
            raise ValueError(f"a {found.action} without the region it makes or goes into")
        return replace(found, box=box)

    def says(self) -> tuple:
        """What it comes to, whoever said it and when."""
        return self.tile, self.region, self.action, self.name, self.into


class Piece(NamedTuple):
    """What a split cuts out of a region: all of it that lies in the box, or in the mask where there is one."""

    region: int
    box: Box
    mask: str | None


class DecisionLog:
    """The log in memory, kept up with the file, which several pages and programs may write to at once.

    lines: tile -> reviewer -> all they said, in order. history: reviewer -> what of it stands, of all tiles. pieces:
    tile -> number -> what was ever cut out, by whomever; the same cut has the same number for all. bad: what was wrong
    with lines that were passed over.
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
        """What a reviewer said of a tile and did not take back, in order; of the rounds up to this one, or of all."""
        found: list[Decision] = []
        for decision in self.lines.get(tile, {}).get(reviewer, ()):
            if rounds is None or decision.round <= rounds:
                _stand(found, decision)
        return found

    def refresh(self) -> None:
        """Read what was appended since."""
        if self.path.exists():
            with self._locked() as file:
                self._read(file)

    def append(self, decision: Decision, highest: int = 0) -> Decision:
        """Write a line and wait until it is on the disk; the decision as written, with its time and a split's number.

        highest: of the tile's proposed regions; a new piece gets a number above it.
        """
        with self._locked() as file:
            self._read(file)
            if decision.action == "split":
                decision = replace(decision, into=self._number(decision, highest))
            decision = replace(decision, time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
            file.write(json.dumps(asdict(decision)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._read(file)
        return decision

    @contextmanager
    def _locked(self):
        """The file, ours alone among threads and programs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._mutex, open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read(self, file) -> None:
        file.seek(self._offset)
        data = file.read()
        if data and not data.endswith(b"\n"):  # its writer died; what comes next must not be torn with it
            file.write(b"\n")
            file.flush()
            data += b"\n"
        for line in data.splitlines():
            self._count += 1
            try:
                self._take(Decision.read(line))
            except ValueError as error:
                self.bad.append(f"{self.path.name}, line {self._count}, is passed over: {error}")
        self._offset += len(data)

    def _take(self, decision: Decision) -> None:
        self.lines[decision.tile][decision.reviewer].append(decision)
        _stand(self.history[decision.reviewer], decision)
        if decision.action == "split":
            self.pieces[decision.tile][decision.into] = Piece(decision.region, decision.box, decision.mask)

    def _number(self, split: Decision, highest: int) -> int:
        piece, known = Piece(split.region, split.box, split.mask), self.pieces[split.tile]
        same = [number for number, other in known.items() if other == piece]
        return same[0] if same else max(highest, *known, 0) + 1


def _stand(standing: list[Decision], decision: Decision) -> None:
    """Add a decision to those that stand, or take back the latest one on its region."""
    if decision.action != "undo":
        standing.append(decision)
        return
    for k in reversed(range(len(standing))):
        if (standing[k].tile, standing[k].region) == (decision.tile, decision.region):
            del standing[k]
            return
