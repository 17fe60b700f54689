"""The prompt loop of `demo.py --interactive`: a line of words, a click or a box in, an answer and an image out."""

from __future__ import annotations

import cmd
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


class Dialogue(cmd.Cmd):
    """A line that begins with none of the commands is words. The image is looked at once, whatever is asked."""

    prompt = "> "

    def __init__(self, session: Session, folder: Path, classes: Callable[[], Vocabulary], **streams) -> None:
        """
        Args:
            folder: where images and files go. names: what regions are named from, when first needed.
            streams: stdin, stdout of `cmd.Cmd`, for tests.
        """
        super().__init__(**streams)
        self.use_rawinput = "stdin" not in streams
        self.session, self.folder, self.classes = session, folder, classes
        height, width = session.seen.size
        self.intro = f"{session.image.name}, {width} x {height} pixels. Words, or help, or quit."
        self.words: list[str] = []

    def default(self, line: str) -> None:
        if line == "EOF":
            return True
        self.words = line.split(",")
        self._segment()
        return None

    def do_words(self, line: str) -> None:
        """words a,b|c     ask for names, with bars between synonyms; "words" itself may be left out"""
        self.default(line)

    def do_point(self, line: str) -> None:
        """point x y       a click on a region; more clicks mend it, with a 0 at the end where it reaches too far"""
        x, y, *inside = _numbers(line, (2, 3), "point x y, or point x y 0")
        self._tell_region(self.session.click(x, y, bool(inside[0]) if inside else True))

    def do_box(self, line: str) -> None:
        """box x0 y0 x1 y1 a new region from a box; x1 and y1 are just outside"""
        self._tell_region(self.session.draw_box(*_numbers(line, (4,), "box x0 y0 x1 y1")))

    def do_name(self, line: str) -> None:
        """name [a,b,c]    what the region looks most like, of these words or of names of all kinds"""
        ranked = self.session.name(Vocabulary.parse(line) if line else self.classes())
        self._say(tabulate(ranked, ["name", "cosine"], floatfmt=".3f"))

    def do_like(self, _: str) -> None:
        """like            find everything like the region: it becomes a class beside the latest words"""
        self._say(f"{self.session.add_example()} is a class now")
        self._segment()

    def do_clear(self, _: str) -> None:
        """clear           forget region, examples and words"""
        self.session.clear()
        self.words = []

    def do_everything(self, line: str) -> None:
        """everything [n]  regions without a word, from clicks on a grid with n along the longer side (16)"""
        side = int(_numbers(line, (0, 1), "everything, or everything 24")[0]) if line else 16
        found = self.session.find_all_regions(self.classes(), side=side)
        if not found:
            self._say("no region that the model is sure of: try more clicks, everything 32, or a larger image")
            return
        rows = [(i, p.classes[0][0], p.classes[0][1], p.iou_pred, p.box) for i, p in enumerate(found, 1)]
        self._say(tabulate(rows, ["region", "name", "cosine", "quality", "box"], floatfmt=".2f"))
        self._draw(self.session.proposal_labels(), "everything")

    def do_save(self, _: str) -> None:
        """save            write every file of what was found"""
        written = export(self.session)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in written:
            target = self.folder / path.name
            target.write_bytes(path.read_bytes())
            self._say(str(target))

    def do_quit(self, _: str) -> bool:
        """quit            leave; so does the end of the input"""
        return True

    def do_help(self, _: str) -> None:
        """help            this"""
        methods = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("do_")]
        self._say("\n".join(method.__doc__ for method in methods))

    def emptyline(self) -> None:
        """Do nothing; cmd.Cmd would repeat the latest command."""

    def onecmd(self, line: str) -> bool:
        try:
            return super().onecmd(line)
        except USER_ERRORS as error:  # a mistake does not end the loop
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

    def _tell_region(self, region) -> None:
        thought = "" if region.iou_pred is None else f", IoU thought to be {region.iou_pred:.2f}"
        self._say(f"{int(region.mask.sum()):,} pixels{thought}")
        self._draw(region.mask.astype(np.uint8), "region")

    def _draw(self, labels: np.ndarray, what: str) -> None:
        self._write(Image.fromarray(highlight(self.session.image.rgb, labels)), what)

    def _write(self, image: Image.Image, what: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.session.image.stem}_{what}.png"
        image.save(path)
        self._say(str(path))

    def _say(self, text: str) -> None:
        self.stdout.write(text + "\n")


def _numbers(line: str, counts: Sequence[int], usage: str) -> list[float]:
    """The numbers of a line.

    Raises:
        ValueError: no numbers, or too many or few of them; tells the usage.
    """
    try:
        numbers = [float(word) for word in line.replace(",", " ").split()]
    except ValueError:
        numbers = None
    if numbers is None or len(numbers) not in counts:
        raise ValueError(f"{line!r} are not the numbers that are needed: write it as {usage}")
    return numbers
