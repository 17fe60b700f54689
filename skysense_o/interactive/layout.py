"""The components of the web page, and which callback of `Page` each event calls."""

import base64
import functools
import io
from html import escape
from types import SimpleNamespace

from PIL import Image

from skysense_o.image_io import read_image
from skysense_o.interactive.opening import UPLOADS
from skysense_o.interactive.page import BOX, INSIDE, NO_IMAGE, OUTSIDE, Page

THUMBNAIL = (240, 120)
STYLE = """
:root, .gradio-container {--block-info-text-color: #3f3f46; --body-text-color-subdued: #3f3f46;
  --input-placeholder-color: #52525b; --link-text-color: #1d4ed8; --block-label-text-color: #52525b;
  --block-title-text-color: #52525b; --button-primary-background-fill: #c2410c;
  --button-primary-background-fill-hover: #9a3412; --button-primary-text-color: #ffffff}
.dark, .dark .gradio-container {--block-info-text-color: #d4d4d8; --body-text-color-subdued: #d4d4d8;
  --input-placeholder-color: #b4b4bd; --link-text-color: #93c5fd; --block-label-text-color: #d4d4d8;
  --block-title-text-color: #d4d4d8}
#title h1 {margin: 0} #title p {margin: 2px 0 0}
#view img {cursor: crosshair}
#legend table, #legend tr, #legend td, #legend th {border: none}
#legend table {width: 100%; border-collapse: collapse; margin: 0}
#legend tr {border-bottom: 1px solid var(--border-color-primary)}
#legend td, #legend th {padding: 4px 6px; text-align: left}
#legend .number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
.swatch {display: inline-block; width: 1em; height: 1em; margin-right: .5em; border-radius: 3px; vertical-align: -2px}
.region ol {margin: 2px 0 0 1.5em}
#known p {margin: 0 0 .5em}
.example {flex-direction: column; white-space: normal; line-height: 1.25; padding: 6px; font-weight: 400}
.example::before {content: ""; width: 100%; aspect-ratio: 2; border-radius: 4px; background-size: cover;
  background-position: center; margin-bottom: 4px}
button:focus-visible, input:focus-visible, textarea:focus-visible {outline: 3px solid #1d4ed8; outline-offset: 1px}
@media (max-width: 760px) {#result {order: -1} #title p {display: none} #view img {max-height: 60vh}}
"""


def page_style(page: Page) -> str:
    """The CSS of the page, with a thumbnail per example."""
    rules = [
        f"#example_{i}::before {{background-image: url(data:image/jpeg;base64,{_thumbnail(example.path)})}}"
        for i, example in enumerate(page.examples)
    ]
    return STYLE + "\n".join(rules)


def _thumbnail(path) -> str:
    image = Image.fromarray(read_image(path).filled())
    image.thumbnail((THUMBNAIL[0], THUMBNAIL[0]))
    data = io.BytesIO()
    image.save(data, "jpeg", quality=80)
    return base64.b64encode(data.getvalue()).decode()


def build(page: Page):
    """The Gradio page."""
    import gradio as gr

    with gr.Blocks(title="SkySense-O", delete_cache=(600, 3600), analytics_enabled=False) as blocks:
        parts = SimpleNamespace()
        parts.session = gr.State(None, time_to_live=3600, delete_callback=page.sessions.remove)
        gr.Markdown("# SkySense-O\nOpen an image from above, name classes, and get a mask per class.", elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                _lay_out_input(page, parts)
            with gr.Column(scale=3, min_width=320, elem_id="result"):
                _lay_out_result(page, parts)
        _wire(page, blocks, parts)
    return blocks


def _lay_out_input(page: Page, parts: SimpleNamespace) -> None:
    """Image, examples, words and their options."""
    import gradio as gr

    parts.file = gr.File(label="Image or GeoTIFF", height=130, file_types=list(UPLOADS))
    with gr.Row():
        parts.examples = [
            gr.Button(f"{e.title}: {e.words}", size="sm", min_width=90, elem_id=f"example_{i}", elem_classes="example")
            for i, e in enumerate(page.examples)
        ]
    parts.words = gr.Textbox(
        "",
        label="Classes",
        placeholder="building|house, road, tree",
        info="Separate classes by commas and synonyms by bars. A colour is optional: road #e83cc8",
    )
    with gr.Accordion("What the model knows", open=False):
        gr.HTML(_known(page), elem_id="known")
    with gr.Accordion("Background and threshold", open=False):
        parts.background = gr.Textbox("", label="Background words", info="For everything else, which gets no mask.")
        parts.threshold = gr.Slider(
            0, 1, 0, step=0.05, label="Threshold", info="Pixels with a lower score get no mask."
        )
    parts.go = gr.Button("Segment", variant="primary")
    parts.legend = gr.HTML(elem_id="legend")
    parts.shown = gr.CheckboxGroup([], label="Masks shown", visible=False)
    parts.opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="opacity")


def _lay_out_result(page: Page, parts: SimpleNamespace) -> None:
    """The image, clicks on it, files, and questions."""
    import gradio as gr

    prompts = page.predictor.model.takes_prompts
    parts.status = gr.Markdown(NO_IMAGE)
    parts.view = gr.Image(
        elem_id="view", label="Result", format="jpeg", type="pil", interactive=False, buttons=["fullscreen"]
    )
    modes = [INSIDE, OUTSIDE, BOX] if prompts else [BOX]
    parts.mode = gr.Radio(modes, value=modes[0], label="Click on the image", info=_what_clicks_do(prompts))
    parts.dragged = gr.Textbox(elem_id="dragged", visible="hidden")
    parts.region = gr.HTML()
    with gr.Row():
        parts.like = gr.Button("Find everything like it", size="sm", min_width=120)
        parts.every = gr.Button("Everything, without words", size="sm", min_width=120, visible=prompts)
        parts.clear = gr.Button("Clear region", size="sm", min_width=120)
    parts.save = gr.Button("Make a ZIP file of all results")
    parts.files = gr.File(label="Results", visible=False, interactive=False)
    asks = page.answer is not None
    parts.question = gr.Textbox(label="Ask about the image", placeholder="How many ships are there?", visible=asks)
    parts.reply = gr.Markdown(elem_id="reply")


def _what_clicks_do(prompts: bool) -> str:
    if prompts:
        return "A click, or a box that you drag, selects a region. The page names it and can find more of its kind."
    return (
        "A box that you drag can be named, and the page can find more of its kind. To get the mask of a click or a box,"
        " load weights that were trained with prompts (configs/mini/prompts.yaml): --weights FILE."
    )


def _known(page: Page) -> str:
    """HTML: the classes and the pixel size that suit the model."""
    classes = page.naming_vocabulary.classes
    gsd = page.predictor.model.gsd
    size = f"<p>Trained at {gsd:g} m per pixel; best on images near that.</p>" if gsd else ""
    return (
        f"{size}<p>Any words can be asked for. These {len(classes)} are the ones that regions are compared with:</p>"
        f"<p>{escape(', '.join(classes))}</p>"
    )


def _wire(page: Page, blocks, p: SimpleNamespace) -> None:
    """Connect the events of the components p to the callbacks."""
    import gradio as gr

    opened = [p.session, p.view, p.status, p.words, p.legend, p.shown, p.region, p.files, p.reply]
    found, asked = [p.session, p.view, p.legend, p.shown, p.files], [p.session, p.words, p.background, p.threshold]
    asked, looked = [*asked, p.opacity], [p.session, p.shown, p.opacity]
    selected = [p.session, p.view, p.region]
    private = {"api_visibility": "private", "show_progress_on": p.view}
    model = {**private, "concurrency_id": "model", "concurrency_limit": page.limits.jobs}

    blocks.load(page.event(page.welcome, False), p.session, opened, **model)
    p.file.change(page.event(page.open, False), [p.session, p.file], opened, **model)
    for button, example in zip(p.examples, page.examples):
        take = page.event(functools.partial(_swap, page.example, example), False)
        button.click(take, p.session, opened, **model)
    gr.on([p.go.click, p.words.submit], page.event(page.segment), asked, found, **model)
    p.like.click(page.event(page.like), asked, found, **model)
    redraw = page.event(page.redraw)
    p.shown.input(redraw, looked, p.view, **private)
    # "release" is of the mouse only; "change" comes of keys and typing, too.
    p.opacity.change(redraw, looked, p.view, trigger_mode="always_last", **private)
    click = page.event(page.select)

    def on_select(session, mode, shown, opacity, event: gr.SelectData):
        return click(session, mode, shown, opacity, event.index)

    p.view.select(on_select, [p.session, p.mode, p.shown, p.opacity], selected, **model)
    p.dragged.change(page.event(page.drag), [p.session, p.dragged, p.shown, p.opacity], selected, **model)
    p.every.click(page.event(page.everything), looked, selected, **model)
    p.clear.click(page.event(page.clear), looked, selected, **private)
    p.save.click(page.event(page.files), p.session, p.files, **model)
    if page.answer is not None:
        p.question.submit(page.event(page.ask), [p.session, p.question], p.reply, **model)


def _swap(callback, example, session):
    return callback(session, example)
