"""The callbacks of the web page. Each takes the user's session and returns values for components of `layout`."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skysense_o.data.open_world import open_world
from skysense_o.inference.predictor import Predictor
from skysense_o.interactive.exports import export_zip
from skysense_o.interactive.limits import Limits
from skysense_o.interactive.opening import open_upload
from skysense_o.interactive.serving import dragged_box, guarded
from skysense_o.interactive.session import Session
from skysense_o.interactive.session_store import SessionStore
from skysense_o.interactive.timed_work import TimedWork, TooLate, check_time
from skysense_o.interactive.view import (
    legend,
    page_zoom,
    proposals_text,
    region_text,
    render_view,
    words_and_colors,
)
from skysense_o.vocabulary import Vocabulary

INSIDE, OUTSIDE, BOX = "Click: inside", "Click: outside", "Box: two corners"
NO_IMAGE = "No image yet: drop one, or take an example."
DROPPED = "Your image was closed, because the server needed room for other people's images: open it again."
QUESTION_LENGTH = 500
Answer = Callable[[np.ndarray, str], str]


@dataclass(frozen=True)
class Example:
    """An image that comes with the page, and words that suit it."""

    title: str
    path: Path
    words: str


class Page:
    """The callbacks.

    Args:
        predictor: the model.
        root: folder of all sessions.
        limits: what one user may take.
        answer: (rgb uint8 (H,W,3), question) -> text; None without a VQA model.
        examples: the first one is shown when the page opens.
    """

    def __init__(
        self,
        predictor: Predictor,
        root: Path,
        limits: Limits | None = None,
        answer: Answer | None = None,
        examples: Sequence[Example] = (),
    ) -> None:
        self.predictor, self.root, self.answer, self.examples = predictor, root, answer, tuple(examples)
        self.limits = limits or Limits()
        self.sessions = SessionStore(self.limits.sessions, self.limits.session_bytes)
        self.work = TimedWork(self.limits.seconds, self.limits.jobs)

    @functools.cached_property
    def naming_vocabulary(self) -> Vocabulary:
        """The classes that regions are compared with."""
        return open_world()[0]

    def encode_naming_vocabulary(self) -> None:
        """Encode the naming classes ahead of time, so that the first region does not wait for them."""

        self.predictor.model.read_words(self.naming_vocabulary)

    def event(self, callback: Callable, needs_image: bool = True) -> Callable:
        """Wrap a callback whose first argument is the session: time limit, lock, and errors as messages."""

        def locked(session: Session | None, *rest):
            if session is None:
                return callback(session, *rest)
            # Shorter than the time limit, so that waiting for one's own last request does not count as late.
            if not session.lock.acquire(timeout=self.limits.seconds / 2):
                raise TooLate("your last request still runs: wait for it")
            try:
                if session.closed and needs_image:
                    raise ValueError(DROPPED)
                out = callback(session, *rest)
                if not session.closed:
                    self.sessions.used(session)
                return out
            finally:
                session.lock.release()

        @functools.wraps(callback)
        def run(session, *rest):
            if needs_image and session is None:
                raise ValueError(NO_IMAGE)
            return self.work(locked, session, *rest)

        return guarded(run)

    def welcome(self, session: Session | None):
        """Open the first example; outputs as `open`."""
        return self.example(session, self.examples[0]) if self.examples else self.open(session, None)

    def open(self, session: Session | None, file: str | None):
        """Returns session, image, status, words, legend, toggles, region, files, reply."""
        import gradio as gr

        if not file:
            self.sessions.remove(session)
            return None, None, NO_IMAGE, gr.skip(), *self._no_answers()
        new = self._open(session, Path(file))
        return new, self._view(new, (), 0.5), self._status(new), gr.skip(), *self._no_answers()

    def example(self, session: Session | None, example: Example):
        """Open an example and segment its words; outputs as `open`."""
        new = self._open(session, example.path)
        _, image, table, toggles, files = self.segment(new, example.words, "", 0, 0.5)
        return new, image, self._status(new), example.words, table, toggles, "", files, ""

    def _open(self, session: Session | None, path: Path) -> Session:
        """A new session in place of the old one, which stays if this fails."""
        image = open_upload(path, self.limits.pixels, self.limits.read_pixels)
        new = Session(self.predictor, image, self.root)
        try:
            if image.scene is not None and path.is_relative_to(self.root):  # the upload is deleted after an hour
                kept = new.folder / path.name
                try:
                    os.link(path, kept)
                except OSError:
                    shutil.copyfile(path, kept)
                new.image = replace(image, scene=kept)
            check_time()
        except BaseException:
            new.close()
            raise
        self.sessions.used(new)
        self.sessions.remove(session)
        return new

    def _status(self, session: Session) -> str:
        height, width = session.seen.size
        place = ", with its place on the ground" if session.image.scene else ""
        notes = "".join(f"; {note}" for note in session.image.notes)
        return f"**{session.image.name}**, {width} x {height} pixels{place}{notes}"

    def _no_answers(self):
        """Empty values for legend, toggles, region, files, reply."""
        import gradio as gr

        toggles = gr.CheckboxGroup(choices=[], value=[], visible=False)
        return "", toggles, "", gr.File(value=None, visible=False), ""

    def segment(self, session: Session, words: str, background: str, threshold: float, opacity: float):
        """Returns session, image, legend, toggles, files."""
        import gradio as gr

        names, colors = words_and_colors(words)
        rest, _ = words_and_colors(background)
        self.limits.check_words([*names, *rest])
        session.segment(names, rest, threshold or None, colors)
        session.proposal_labels = None
        shown = list(session.found.classes[session.found.has_none :])
        toggles = gr.CheckboxGroup(choices=shown, value=shown, visible=True)
        return session, self._view(session, shown, opacity), legend(session), toggles, gr.File(None, visible=False)

    def redraw(self, session: Session, shown: list[str], opacity: float):
        """Returns the image."""
        return self._view(session, shown, opacity)

    def select(self, session: Session, mode: str, shown: list[str], opacity: float, xy: tuple[float, float]):
        """A click on the image; returns session, image, region. xy: pixel of the displayed image."""
        x, y = (value // page_zoom(session) for value in xy)
        region = session.corner_at(x, y) if mode == BOX else session.click(x, y, mode == INSIDE)
        text = self._region(session) if region else "Now the opposite corner."
        return session, self._view(session, shown, opacity), text

    def drag(self, session: Session, corners: str, shown: list[str], opacity: float):
        """A box dragged on the image, as drag.js sends it; returns session, image, region."""
        session.corner = None
        session.draw_box(*dragged_box(corners, page_zoom(session)))
        return session, self._view(session, shown, opacity), self._region(session)

    def _region(self, session: Session) -> str:
        ranked = session.name(self.naming_vocabulary) if session.region.mask.any() else []
        return region_text(session, ranked)

    def like(self, session: Session, words: str, background: str, threshold: float, opacity: float):
        """Make the region a class and segment again; outputs as `segment`."""
        session.add_example()
        session.region = None
        return self.segment(session, words, background, threshold, opacity)

    def everything(self, session: Session, shown: list[str], opacity: float):
        """Find regions without words; returns session, image, region."""
        session.region = None
        text = proposals_text(session.find_all_regions(self.naming_vocabulary))
        return session, self._view(session, shown, opacity), text

    def clear(self, session: Session, shown: list[str], opacity: float):
        """Forget the region and the examples; returns session, image, region."""
        session.clear()
        return session, self._view(session, shown, opacity), ""

    def files(self, session: Session):
        """Write all results; returns the ZIP file."""
        import gradio as gr

        return gr.File(str(export_zip(session)), visible=True)

    def ask(self, session: Session, question: str) -> str:
        """The answer to a question about the image."""
        if not question.strip():
            raise ValueError("Type a question first.")
        if len(question) > QUESTION_LENGTH:
            raise ValueError(f"the question has {len(question)} characters, and {QUESTION_LENGTH} are allowed here")
        return self.answer(session.image.rgb, question)

    def _view(self, session: Session, shown: Sequence[str], opacity: float):
        return render_view(session, shown, opacity, page_zoom(session))
