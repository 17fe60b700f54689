"""The prompt loop of `demo.py --interactive`: words, points or a box per line; an answer and an image for each."""

from __future__ import annotations

import cmd
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tabulate import tabulate

from skysense_o.errors import USER_ERRORS, message
from skysense_o.inference.drawing import highlight, overlay, with_legend
from skysense_o.interactive.exports import export
from skysense_o.interactive.session import Session
from skysense_o.vocabulary import Vocabulary
from skysense_o.whole_files import whole
from skysense_o.words import split_words


class Dialogue(cmd.Cmd):
    """Reads commands line by line; a line without a command is a list of words. The image is encoded once.

    Args:
        session: the open image.
        folder: where images and files are written.
        classes: a function that returns the vocabulary from which regions get their names.
        streams: stdin and stdout of `cmd.Cmd`, for tests.
    """

    prompt = "> "

    def __init__(self, session: Session, folder: Path, classes: Callable[[], Vocabulary], **streams) -> None:
        super().__init__(**streams)
        self.use_rawinput = "stdin" not in streams
        self.session, self.folder, self.classes = session, folder, classes
        height, width = session.seen.size
        self.intro = f"{session.image.name}, {width} x {height} pixels. Words, or help, or quit."
        self.words: list[str] = []

    def default(self, line: str) -> None:
        if line == "EOF":
            return True
        self.words = split_words(line)
        self._segment()
        return None

    def do_words(self, line: str) -> None:
        """words a,b|c     segment these classes, with bars between synonyms; "words" itself may be left out"""
        self.default(line)

    def do_point(self, line: str) -> None:
        """point x y       select a region by a point; more points correct it; 0 marks a background point"""
        x, y, *inside = _numbers(line, (2, 3), "point x y, or point x y 0")
        self._report_region(self.session.click(x, y, bool(inside[0]) if inside else True))

    def do_box(self, line: str) -> None:
        """box x0 y0 x1 y1 select a region by a half-open box: the last pixel inside is x1-1 y1-1"""
        self._report_region(self.session.draw_box(*_numbers(line, (4,), "box x0 y0 x1 y1")))

    def do_name(self, line: str) -> None:
        """name [a,b,c]    the classes most similar to the region, among these words or among many"""
        vocabulary = Vocabulary.parse(line) if line else self.session.naming(self.classes())
        if vocabulary is None:
            self._say("SAM 3 compares class by class: give words, such as: name road,tree")
            return
        ranked = self.session.name(vocabulary)
        self._say(tabulate(ranked, ["class", "cosine"], floatfmt=".3f"))

    def do_like(self, _: str) -> None:
        """like            find everything like the region: it becomes a class next to the latest words"""
        self._say(f"{self.session.add_example()} is a class now")
        self._segment()

    def do_undo(self, _: str) -> None:
        """undo            undo the latest point or box"""
        region = self.session.undo()
        if region is None:
            self._say("no region")
        else:
            self._report_region(region)

    def do_clear(self, _: str) -> None:
        """clear           forget the region, the examples and the words"""
        self.session.clear()
        self.words = []

    def do_everything(self, line: str) -> None:
        """everything [n]  automatic masks, from a grid of points with n along the longer side (16)"""
        side = int(_numbers(line, (0, 1), "everything, or everything 24")[0]) if line else 16
        found = self.session.find_all_regions(self.session.naming(self.classes()), side=side)
        if not found:
            self._say("no region with a high enough score: try more points (everything 32) or a larger image")
            return
        rows = [(i, *(p.classes or [("", None)])[0], p.iou_pred, p.box) for i, p in enumerate(found, 1)]
        self._say(tabulate(rows, ["region", "class", "cosine", "score", "box"], floatfmt=".2f"))
        self._draw(self.session.proposal_labels, "everything")

    def do_save(self, _: str) -> None:
        """save            write the results in all formats"""
        written = export(self.session)
        for path in written:
            target = self.folder / path.name
            with whole(target) as part:
                shutil.copyfile(path, part)
            self._say(str(target))

    def do_quit(self, _: str) -> bool:
        """quit            leave; the end of the input leaves, too"""
        return True

    def do_help(self, _: str) -> None:
        """help            this list"""
        methods = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("do_")]
        self._say("\n".join(method.__doc__ for method in methods))

    def emptyline(self) -> None:
        """Do nothing; cmd.Cmd would repeat the latest command."""

    def onecmd(self, line: str) -> bool:
        try:
            return super().onecmd(line)
        except USER_ERRORS as error:  # an error does not end the loop
            self._say(f"error: {message(error)}")
            return False

    def _segment(self) -> None:
        self.session.segment(self.words)
        rows = [[r["name"], r["pixels"], f"{100 * r['share']:.1f} %"] for r in self.session.rows()]
        self._say(tabulate(rows, ["class", "pixels", "share"], intfmt=",", colalign=("left", "right", "right")))
        found, palette = self.session.found, self.session.palette
        laid = overlay(self.session.image.rgb, found.labels, palette)
        if found.valid is not None:
            laid[~found.valid] = 255
        self._write(with_legend(laid, found.classes, palette, [row["share"] for row in found.areas()]), "overlay")

    def _report_region(self, region) -> None:
        quality = "" if region.iou_pred is None else f", predicted IoU {region.iou_pred:.2f}"
        self._say(f"{int(region.mask.sum()):,} pixels{quality}")
        self._draw(region.mask.astype(np.uint8), "region")

    def _draw(self, labels: np.ndarray, what: str) -> None:
        self._write(Image.fromarray(highlight(self.session.image.rgb, labels)), what)

    def _write(self, image: Image.Image, what: str) -> None:
        path = self.folder / f"{self.session.image.stem}_{what}.png"
        with whole(path) as part:
            image.save(part, format="PNG")
        self._say(str(path))

    def _say(self, text: str) -> None:
        self.stdout.write(text + "\n")


def _numbers(line: str, counts: Sequence[int], usage: str) -> list[float]:
    """The numbers of a line.

    Args:
        line: numbers, separated by blanks or commas.
        counts: permitted counts of numbers.
        usage: how to write the command, for the error message.

    Raises:
        ValueError: the line has something else than numbers, or a count of numbers that is not permitted.
    """
    try:
        numbers = [float(word) for word in line.replace(",", " ").split()]
    except ValueError:
        numbers = None
    if numbers is None or len(numbers) not in counts:
        raise ValueError(f"{line!r} is not understood: write it as {usage}")
    return numbers
