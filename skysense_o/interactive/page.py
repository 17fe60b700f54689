"""The actions of the web page, without HTTP: each method handles one request of one visitor, and returns JSON."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skysense_o.data.open_world import open_world
from skysense_o.inference.predictor import Predictor
from skysense_o.interactive.closing import ClosedSession
from skysense_o.interactive.current_request import TooLate, check_time
from skysense_o.interactive.exports import export_zip
from skysense_o.interactive.image_state import image_state
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.opening_process import open_isolated
from skysense_o.interactive.session import Session
from skysense_o.interactive.session_store import SessionStore
from skysense_o.interactive.timed_work import TimedWork
from skysense_o.interactive.view import map_png, words_and_colors
from skysense_o.interactive.visitors import OpenImage, Visitor, Visitors
from skysense_o.vocabulary import Vocabulary

DROPPED = "Your image was closed, because the server needed room for other people's images: open it again."
NOTHING_FOUND = "no region with a high enough score was found here: try words, or a click"
QUESTION_LENGTH = 500
Answer = Callable[[np.ndarray, str], str]
SceneNames = Callable[[np.ndarray], Sequence[tuple[str, float]]]


@dataclass(frozen=True)
class Example:
    """An image that comes with the page, and words and a threshold that suit it."""

    title: str
    path: Path
    words: str
    threshold: float = 0.0


class Page:
    """Handles the requests of the web page, one method per request.

    Args:
        predictor: the model.
        root: folder of all sessions.
        limits: limits of the page, see `Limits`; None: the default limits.
        answer: (rgb uint8 (H,W,3), question) -> text; None without a VQA model.
        scene_names: rgb -> (class, cosine) of the whole image, the best first; None without a model for it.
        examples: the first example is shown when the page opens.
        basemap: address of map tiles with {z}, {x} and {y}; people may switch the tiles on. "": no tiles.
    """

    def __init__(
        self,
        predictor: Predictor,
        root: Path,
        limits: Limits | None = None,
        answer: Answer | None = None,
        scene_names: SceneNames | None = None,
        examples: Sequence[Example] = (),
        basemap: str = "",
    ) -> None:
        self.predictor, self.root, self.answer, self.scene_names = predictor, root, answer, scene_names
        self.examples, self.basemap = tuple(examples), basemap
        self.limits = limits or Limits()
        self.sessions = SessionStore(self.limits.sessions, self.limits.session_bytes)
        self.visitors = Visitors(self.sessions, self.limits.images, 4 * self.limits.sessions)
        self.work = TimedWork(self.limits.seconds, self.limits.jobs)

    @functools.cached_property
    def naming_vocabulary(self) -> Vocabulary:
        """The open-world classes, with which a selected region is compared to find its name."""
        return open_world()[0]

    def encode_naming_vocabulary(self) -> None:
        """Encode the naming classes ahead of time, so that the first region does not wait for them."""
        # SAM 3 names regions with other words, see `Session.naming`.
        if not hasattr(self.predictor.model, "embed_regions"):
            self.predictor.model.read_words(self.naming_vocabulary)

    # Content of the page

    def about(self) -> dict:
        """The part of the page's state that is the same for everyone."""
        known = getattr(self.predictor.model, "training_words", None)  # SAM 3 has none
        return {
            "examples": [{"title": example.title, "words": example.words} for example in self.examples],
            "known": [words[0] for words in known.classes] if known else [],
            "gsd": list(self.predictor.known_gsd),
            "weights": Path(self.predictor.source).name,
            "prompts": self.predictor.model.takes_prompts,
            "questions": self.answer is not None,
            "scene_names": self.scene_names is not None,
            "upload_bytes": self.limits.upload_bytes,
            "basemap": self.basemap,
        }

    def state(self, visitor: Visitor) -> dict:
        """All images of a visitor, and the image that is shown."""
        dropped, visitor.closed_for_room = visitor.closed_for_room, 0
        images = [{"id": image.key, "name": image.session.file_name} for image in list(visitor.images.values())]
        return {"images": images, "current": visitor.current, "notice": DROPPED if dropped else None}

    def familiar(self, words: Sequence[str]) -> dict[str, str]:
        """Word -> a warning, for each word that the model was not trained on."""
        told = {}
        for word in dict.fromkeys(words):
            for sentence in self.predictor.unfamiliar(Vocabulary.of([word])).values():
                told[word] = sentence
        return told

    # Requests of a visitor

    def locked(self, image: OpenImage, callback: Callable, *args) -> dict:
        """Run a callback on an image while nothing else works on it; returns the image's state."""
        session = image.session
        # Shorter than the time limit, so that a request that waits for the same user's last request is not late itself.
        if not session.lock.acquire(timeout=self.limits.seconds / 2):
            raise TooLate("your last request still runs: wait for it")
        try:
            with session.in_use():
                callback(image, *args)
                image.version += 1
                self.sessions.used(session)
                return image_state(image)
        except ClosedSession as error:
            raise ValueError(DROPPED) from error
        finally:
            session.lock.release()

    def open(self, visitor: Visitor, path: Path) -> dict:
        """Open a file; the file may be deleted afterwards."""
        return self.locked(self._open(visitor, path), lambda image: None)

    def example(self, visitor: Visitor, number: int) -> dict:
        """Show an example, opening it if necessary, and segment its words."""
        if not 0 <= number < len(self.examples):
            raise ValueError(f"there is no example {number}")
        example = self.examples[number]
        image = next((image for image in list(visitor.images.values()) if image.example == number), None)
        if image is None:
            image = self._open(visitor, example.path)
            image.example = number
        visitor.current = image.key
        return self.locked(image, self.segment, example.words, "", example.threshold)

    def _open(self, visitor: Visitor, path: Path) -> OpenImage:
        with ExitStack() as undo:
            folder = Path(tempfile.mkdtemp(prefix="session_", dir=self.root))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            session = Session(self.predictor, open_isolated(path, folder, self.limits), folder)
            undo.callback(session.close)
            self._give_map(session)
            check_time()
            undo.pop_all()
        image = OpenImage(session)
        self.visitors.add(visitor, image)
        return image

    def _give_map(self, session: Session) -> None:
        """Make the map of the session, if its image is georeferenced; if no map can be made, a note says why."""
        image = session.image
        if image.scene is None or session.areas is None:
            return
        from skysense_o.interactive.map_view import MapView

        try:
            session.map = MapView(image.scene, image.full)
        except ValueError as error:
            session.image = replace(image, notes=(*image.notes, f"shown without a map: {error}"))

    def segment(self, image: OpenImage, words: str, background: str, threshold: float) -> None:
        """Segment words, and regions that were made classes."""
        names, colors = words_and_colors(words)
        rest, _ = words_and_colors(background)
        self.limits.check_words([*names, *rest])
        image.session.segment(names, rest, threshold or None, colors)
        image.session.proposal_labels = image.summary = None
        image.words, image.background, image.threshold = words, background, threshold

    def click(self, image: OpenImage, x: float, y: float, inside: bool) -> None:
        """Add a point to the region; x, y: on the grid that the browser shows."""
        image.session.click(*self._pixel(image, x, y), inside)
        self._name_region(image)

    def box(self, image: OpenImage, x0: float, y0: float, x1: float, y1: float) -> None:
        """Begin a region by two opposite corners of a box, on the grid that the browser shows."""
        image.session.draw_box(*self._box(image, x0, y0, x1, y1))
        self._name_region(image)

    def undo(self, image: OpenImage) -> None:
        """Undo the latest click or box."""
        image.session.undo()
        self._name_region(image)

    def like(self, image: OpenImage, words: str, background: str, threshold: float) -> None:
        """Make the region a class and segment again."""
        image.session.add_example()
        image.session.deselect()
        image.region_names = []
        self.segment(image, words, background, threshold)

    def everything(self, image: OpenImage) -> None:
        """Find and name all regions of the image, without words from the user."""
        found = image.session.find_all_regions(image.session.naming(self.naming_vocabulary))
        if not found:
            raise ValueError(NOTHING_FOUND)
        image.session.deselect()
        image.region_names = []
        image.summary = Counter(p.classes[0][0] if p.classes else "no name" for p in found).most_common()

    def clear(self, image: OpenImage) -> None:
        """Forget the selected region, the example regions and the names and summary shown for them."""
        image.session.clear()
        image.region_names, image.summary = [], None

    def ask(self, image: OpenImage, question: str) -> None:
        """Answer a question about the image with the VQA model, and keep the answer."""
        if self.answer is None:
            raise ValueError("no model for questions is loaded here")
        if not question.strip():
            raise ValueError("Type a question first.")
        if len(question) > QUESTION_LENGTH:
            raise ValueError(f"the question has {len(question)} characters; {QUESTION_LENGTH} are allowed here")
        image.answered(question, self.answer(image.session.image.rgb, question))

    def name_scene(self, image: OpenImage) -> None:
        """Name the whole image: keep the classes ranked by their cosine."""
        if self.scene_names is None:
            raise ValueError("no model for whole images is loaded here")
        image.scene_names = [
            (name, round(float(cosine), 4)) for name, cosine in self.scene_names(image.session.image.rgb)
        ]

    def files(self, image: OpenImage) -> None:
        """Write the ZIP file of all results."""
        export_zip(image.session)

    def preview_click(self, image: OpenImage, x: float, y: float, inside: bool) -> bytes | None:
        """The mask that a click would give, as PNG on the grid that the browser shows; None if the image is busy."""
        return self._previewed(image, lambda session: session.preview_click(*self._pixel(image, x, y), inside))

    def preview_box(self, image: OpenImage, x0: float, y0: float, x1: float, y1: float) -> bytes | None:
        """The mask that a box would give, see `preview_click`; None also for an empty box."""
        return self._previewed(image, lambda session: session.preview_box(*self._box(image, x0, y0, x1, y1)))

    def _previewed(self, image: OpenImage, mask_of: Callable[[Session], np.ndarray]) -> bytes | None:
        session = image.session
        if not session.lock.acquire(blocking=False):
            return None
        try:
            with session.in_use():
                return map_png(session, [mask_of(session).astype(np.uint8)])
        except ClosedSession:
            return None
        finally:
            session.lock.release()

    def _name_region(self, image: OpenImage) -> None:
        region = image.session.region
        named = region is not None and region.mask.any()
        image.region_names = image.session.name(image.session.naming(self.naming_vocabulary)) if named else []

    def _place(self, image: OpenImage, x: float, y: float) -> tuple[float, float]:
        """Position on the grid that the browser shows -> position in pixels of the image."""
        return (x, y) if image.session.map is None else image.session.map.pixel(x, y)

    def _box(self, image: OpenImage, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """Two opposite corners on the browser's grid -> the half-open XYXY box around them in pixels of the image."""
        height, width = image.session.image.rgb.shape[:2]
        corners = np.array([self._place(image, x, y) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))])
        (left, top), (right, bottom) = np.floor(corners.min(0)), np.ceil(corners.max(0))
        return max(0, left), max(0, top), min(width, right), min(height, bottom)

    def _pixel(self, image: OpenImage, x: float, y: float) -> tuple[float, float]:
        x, y = self._place(image, x, y)
        return float(np.floor(x)), float(np.floor(y))
