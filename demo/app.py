#!/usr/bin/env python
"""A web page to try the model on this machine: images or GeoTIFFs, words, clicks and boxes in; masks and files out.

python demo/app.py
python demo/app.py --weights output/prompts/model_final.safetensors --port 7861
"""

import argparse
import functools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: nothing is told to anybody
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from skysense_o.errors import exit_code

EXAMPLES = {  # what to expect of them: demo/README.md
    "Road in a forest": ("yellowstone_0.4m.jpg", "road, vegetation"),
    "River and town (GeoTIFF)": ("foz_30m.tif", "water, vegetation, building"),
    "Town and fields": ("fields_30m.jpg", "vegetation, building, land"),
}
INSIDE, OUTSIDE, BOX = "Click: inside", "Click: outside", "Box: two corners"
CSS = """
#legend table, #legend tr, #legend td, #legend th {border: none}
#legend table {width: 100%; border-collapse: collapse; margin: 0}
#legend tr {border-bottom: 1px solid var(--border-color-primary)}
#legend td, #legend th {padding: 4px 6px; text-align: left}
#legend .number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
.swatch {display: inline-block; width: 1em; height: 1em; margin-right: .5em; border-radius: 3px; vertical-align: -2px}
.region ol {margin: 2px 0 0 1.5em}
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", default="mini", metavar="W", help="'mini' (default), a file, or hf://org/repo/file")
    p.add_argument(
        "--answerer", default="mini_vqa", metavar="W", help="who answers questions; '' for none (default: mini_vqa)"
    )
    p.add_argument("--config-file", metavar="FILE", help="needed for weights that do not hold their config")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    p.add_argument("--host", default="127.0.0.1", help="who may come: this machine only (default: 127.0.0.1)")
    p.add_argument("--port", type=int, default=7860)
    p.add_argument("--max-upload", default="64mb", metavar="SIZE", help="of a file (default: 64mb)")
    p.add_argument("--max-pixels", type=int, default=4_000_000, metavar="N", help="of an image (default: 4 million)")
    return p


class Page:
    """The callbacks. Each person's `Session` comes in and goes out; nothing of theirs is kept here."""

    def __init__(self, predictor, root: Path, most_pixels: int) -> None:
        from skysense_o.data.open_world import open_world

        self.predictor, self.root, self.most_pixels = predictor, root, most_pixels
        self.all_names = functools.cache(lambda: open_world()[0])

    def read_names(self) -> None:
        """Encode the names that regions are named from, so that the first region need not wait for them."""
        self.predictor.model.read_words(self.all_names())

    def open(self, file, session):
        """-> session, image, status, words, legend, toggles, region, files."""
        return self._begin(Path(file), session) if file else self._nothing(session)

    def example(self, title: str, session):
        name, words = EXAMPLES[title]
        return *self._begin(HERE / name, session)[:3], words, *self._begin_rest()

    def _begin(self, path: Path, session):
        import gradio as gr

        from skysense_o.interactive.opening import open_upload
        from skysense_o.interactive.session import Session

        new = Session(self.predictor, open_upload(path, self.most_pixels), self.root)
        if session is not None:
            session.close()
        height, width = new.seen.size
        place = ", with its place on the ground" if new.image.scene else ""
        status = f"**{new.image.name}**, {width} x {height} pixels{place}{''.join(f'; {n}' for n in new.image.notes)}"
        return new, self._view(new, (), 0.5), status, gr.skip(), *self._begin_rest()

    def _begin_rest(self):
        import gradio as gr

        return "", gr.CheckboxGroup(choices=[], value=[], visible=False), "", gr.Files(value=None, visible=False)

    def _nothing(self, session):
        import gradio as gr

        if session is not None:
            session.close()
        return None, None, NO_IMAGE, gr.skip(), *self._begin_rest()

    def segment(self, session, words: str, background: str, threshold: float, opacity: float):
        """-> session, image, legend, toggles, files."""
        from skysense_o.interactive.view import words_and_colors

        names, colors = words_and_colors(words)
        rest, _ = words_and_colors(background)
        session.proposals = []
        session.segment(names, rest, threshold or None, colors)
        return self._found(session, opacity)

    def _found(self, session, opacity: float):
        import gradio as gr

        from skysense_o.inference.segmentation import NONE
        from skysense_o.interactive.view import legend

        names = [name for name in session.found.classes if name != NONE]
        toggles = gr.CheckboxGroup(choices=names, value=names, visible=True)
        return session, self._view(session, names, opacity), legend(session), toggles, gr.Files(None, visible=False)

    def redraw(self, session, shown: list[str], opacity: float):
        return self._view(session, shown, opacity) if session else None

    def select(self, session, mode: str, shown: list[str], opacity: float, place: tuple[float, float]):
        """A click on the image -> session, image, region."""
        from skysense_o.interactive.view import page_zoom

        x, y = (value // page_zoom(session) for value in place)
        region = session.corner_at(x, y) if mode == BOX else session.click(x, y, mode == INSIDE)
        text = self._region(session) if region else "Now the opposite corner."
        return session, self._view(session, shown, opacity), text

    def drag(self, session, corners: str, shown: list[str], opacity: float):
        """A box drawn on the image, as drag.js tells it -> session, image, region."""
        from skysense_o.interactive.serving import dragged_box
        from skysense_o.interactive.view import page_zoom

        session.corner = None
        session.draw_box(*dragged_box(corners, page_zoom(session)))
        return session, self._view(session, shown, opacity), self._region(session)

    def _region(self, session) -> str:
        from skysense_o.interactive.view import region_text

        ranked = session.name(self.all_names()) if session.region.mask.any() else []
        return region_text(session, ranked)

    def like(self, session, words: str, background: str, threshold: float, opacity: float):
        """-> session, image, legend, toggles, files."""
        session.add_example()
        session.region = None
        return self.segment(session, words, background, threshold, opacity)

    def everything(self, session, shown: list[str], opacity: float):
        """-> session, image, region."""
        from skysense_o.interactive.view import proposals_text

        session.region = None
        text = proposals_text(session.find_all_regions(self.all_names()))
        return session, self._view(session, shown, opacity), text

    def clear(self, session, shown: list[str], opacity: float):
        session.clear()
        return session, self._view(session, shown, opacity), ""

    def files(self, session):
        import gradio as gr

        from skysense_o.interactive.exports import export

        return gr.Files([str(path) for path in export(session)], visible=True)

    def _view(self, session, shown, opacity: float):
        from skysense_o.interactive.view import page_zoom, render_view

        return render_view(session, shown, opacity, page_zoom(session))


NO_IMAGE = "No image yet: drop one, or take an example."


def guarded(callback: Callable, needs_image: bool = True) -> Callable:
    """See `serving.guarded`; the first argument is the session, which is None while there is no image."""
    from skysense_o.interactive import serving

    @functools.wraps(callback)
    def run(session, *rest):
        if needs_image and session is None:
            raise ValueError(NO_IMAGE)
        return callback(session, *rest)

    return serving.guarded(run)


def build(page: Page, answer: Callable | None = None):
    """Lay the page out and wire it. answer: (rgb, question) -> text, where a VQA model is loaded."""
    import gradio as gr

    from skysense_o.interactive.opening import UPLOADS

    prompts = page.predictor.model.takes_prompts
    with gr.Blocks(title="SkySense-O", delete_cache=(600, 3600), analytics_enabled=False) as blocks:
        session = gr.State(None, time_to_live=3600, delete_callback=lambda s: s.close() if s else None)
        gr.Markdown("# SkySense-O\nA image from above and free words in, a mask for every word out.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                file = gr.File(label="OpenedImage or GeoTIFF", height=140, file_types=list(UPLOADS))
                gr.Markdown("Or take an example:")
                with gr.Row():
                    examples = [gr.Button(title, size="sm", min_width=90) for title in EXAMPLES]
                words = gr.Textbox(
                    "",
                    label="Classes",
                    placeholder="building|house, road, tree",
                    info="Commas between, bars between synonyms, a colour if you like: road #e83cc8",
                )
                with gr.Accordion("Background and threshold", open=False):
                    background = gr.Textbox("", label="Background words", info="For the rest, which gets no mask.")
                    threshold = gr.Slider(0, 1, 0, step=0.05, label="Threshold", info="Less sure pixels get no mask.")
                go = gr.Button("Segment", variant="primary")
                legend = gr.HTML(elem_id="legend")
                shown = gr.CheckboxGroup([], label="Masks shown", visible=False)
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity")
            with gr.Column(scale=3, min_width=320):
                status = gr.Markdown(NO_IMAGE)
                view = gr.Image(
                    elem_id="view", label="Result", format="jpeg", type="pil", interactive=False, buttons=["fullscreen"]
                )
                modes = [INSIDE, OUTSIDE, BOX] if prompts else [BOX]
                mode = gr.Radio(modes, value=modes[0], label="Click on the image", info=_what_clicks_do(prompts))
                dragged = gr.Textbox(elem_id="dragged", visible="hidden")
                region = gr.HTML()
                with gr.Row():
                    like = gr.Button("Find everything like it", size="sm", min_width=120)
                    every = gr.Button("Everything, without words", size="sm", min_width=120, visible=prompts)
                    clear = gr.Button("Clear region", size="sm", min_width=120)
                save = gr.Button("Make files to download")
                files = gr.Files(label="Files", visible=False)
                if answer is not None:
                    _question_box(session, answer)
        opened = [session, view, status, words, legend, shown, region, files]
        found, asked = [session, view, legend, shown, files], [session, words, background, threshold, opacity]
        one = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        looked = [session, shown, opacity]
        file.change(guarded(lambda s, f: page.open(f, s), False), [session, file], opened, **one)
        for title, button in zip(EXAMPLES, examples):
            take = functools.partial(lambda s, title: page.example(title, s), title=title)
            button.click(guarded(take, False), [session], opened, **one)
        gr.on([go.click, words.submit], guarded(page.segment), asked, found, **one)
        like.click(guarded(page.like), asked, found, **one)
        gr.on([shown.input, opacity.release], page.redraw, looked, view, api_visibility="private")
        click = guarded(page.select)

        def on_select(s, m, names, alpha, event: gr.SelectData):
            return click(s, m, names, alpha, event.index)

        view.select(on_select, [session, mode, shown, opacity], [session, view, region], **one)
        drawn = [session, dragged, shown, opacity]
        dragged.change(guarded(page.drag), drawn, [session, view, region], **one)
        every.click(guarded(page.everything), looked, [session, view, region], **one)
        clear.click(guarded(page.clear), looked, [session, view, region], api_visibility="private")
        save.click(guarded(page.files), session, files, **one)
    return blocks


def _what_clicks_do(prompts: bool) -> str:
    if prompts:
        return "A click, or a box that you drag, gives a region; it is named, and can be found elsewhere."
    return (
        "A box that you drag can be named and found elsewhere. To get the mask of a click or a box, load weights"
        " that were trained with prompts (configs/mini/prompts.yaml): --weights FILE."
    )


def _question_box(session, answer: Callable) -> None:
    import gradio as gr

    question = gr.Textbox(label="Ask about the image", placeholder="How many ships are there?")
    said = gr.Markdown()
    reply = guarded(lambda s, text: answer(s.image.rgb, text))
    question.submit(reply, [session, question], said, concurrency_id="model", api_visibility="private")


def answer_with(vqa_model) -> Callable:
    """(rgb, question) -> text."""
    import torch

    def answer(rgb, question: str) -> str:
        if not question.strip():
            return "Type a question first."
        return vqa_model.answer([torch.from_numpy(rgb.copy()).permute(2, 0, 1)], [question])[0]

    return answer


def serve(blocks, root: Path, host: str, port: int | None, max_upload: str, block: bool) -> str:
    """Start the server; its address. root: the folder whose path the browser never sees."""
    from skysense_o.interactive import serving

    return serving.serve(blocks, root, host, port, block, max_file_size=max_upload, css=CSS, head=serving.DRAG)


def run() -> int:
    args = parser().parse_args()
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the web page needs gradio: pip install -e ".[app]"', name="gradio") from error
    from skysense_o.inference.classify import load_vqa_model
    from skysense_o.inference.predictor import Predictor

    root = Path(tempfile.mkdtemp(prefix="skysense_o_page_"))
    os.environ["GRADIO_TEMP_DIR"] = str(root)
    try:
        predictor = Predictor.from_pretrained(args.weights, args.device, args.config_file)
        page = Page(predictor, root, args.max_pixels)
        threading.Thread(target=page.read_names, daemon=True).start()
        answer = answer_with(load_vqa_model(args.vqa_model, args.device)) if args.vqa_model else None
        serve(build(page, answer), root, args.host, args.port, args.max_upload, block=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
