"""The web page of the review: one region at a time, by keyboard or mouse."""

import functools
from collections.abc import Callable
from html import escape
from pathlib import Path
from types import SimpleNamespace

from skysense_o.data_engine.review import serving
from skysense_o.data_engine.review.agreement import agreement
from skysense_o.data_engine.review.drawing import draw_regions, review_zoom
from skysense_o.data_engine.review.serving import guarded
from skysense_o.data_engine.review.session import Review
from skysense_o.data_engine.review.steps import CHOOSE, MERGE, MOST_CHOICES, SPLIT, ReviewActions, ReviewPosition

HELP = (
    "a accept · 1-5 choose a name · r rename · x reject · m merge into · s split by a box, or drag one · u undo"
    " · n next · p previous · g agreement · Esc leave a field"
)
CSS = """
#view img {cursor: crosshair; width: 100%; height: auto; max-height: none}
#progress progress {width: 100%; height: .6em}
#help {opacity: .75; font-size: .9em}
#said {min-height: 1.5em}
#offers ul {list-style: none; margin: 0; padding: 0}
#offers li {padding: 2px 8px; cursor: pointer}
#offers li.taken {background: var(--color-accent-soft)}
"""
_ADDRESS = """text => { if (text) { const place = JSON.parse(text);
  history.replaceState(null, "", "?" + new URLSearchParams({reviewer: place.reviewer, round: place.round})); } }"""


def page_script() -> str:
    """The page's scripts, for its head: keyboard shortcuts, and dragging boxes."""
    return serving.script_tag(Path(__file__).with_suffix(".js")) + serving.DRAG


class ReviewPage:
    """The content of the page for a position. The object is stateless: the browser sends the position in each request.

    Args:
        review: the review.
        names: class names to suggest while the reviewer types.
        reviewer: reviewer's name if the page's address has none.
        round: review round if the page's address has none.
    """

    def __init__(self, review: Review, names=(), reviewer: str = "", round: int = 1) -> None:
        self.actions, self.review = ReviewActions(review, names), review
        self.reviewer, self.round = reviewer, round

    def arrive(self, request):
        """Open the page; its address may contain the query parameters `reviewer` and `round`."""
        query = dict(request.query_params) if request is not None else {}
        reviewer = query.get("reviewer") or self.reviewer
        round = int(query["round"]) if query.get("round", "").isdigit() else self.round
        if not reviewer:
            return self.show(None, "")
        self.review.log.refresh()
        return self.show(*self.actions.begin(reviewer, round))

    def begin(self, reviewer: str, round: int):
        self.review.log.refresh()
        return self.show(*self.actions.begin(reviewer, int(round)))

    def step(self, name: str, where: str, *rest):
        """Run the action `name` of `ReviewActions` at the position that the browser sent."""
        position = ReviewPosition.read(where)
        self.review.log.refresh()
        if not position.tile:
            return self.show(position, f"Nothing is left to decide in round {position.round}.")
        return self.show(*getattr(self.actions, name)(position, *rest))

    def click(self, where: str, mode: str, x: float, y: float):
        tile = ReviewPosition.read(where).tile
        zoom = review_zoom(self.review.tiles.labels(tile).shape)
        return self.step("click", where, mode, int(x) // zoom, int(y) // zoom)

    def drag(self, where: str, corners: str):
        """Split the region by a box that was drawn on the image. corners: the text that drag.js sends."""
        zoom = review_zoom(self.review.tiles.labels(ReviewPosition.read(where).tile).shape)
        return self.step("split", where, serving.dragged_box(corners, zoom))

    def agreement(self) -> str:
        self.review.log.refresh()
        return agreement(self.review).text()

    def names(self) -> str:
        """HTML with the suggested class names, which page.js reads."""
        options = "".join(f'<option value="{escape(name)}">' for name in sorted(self.actions.names.values()))
        return f'<datalist id="names">{options}</datalist>'

    def show(self, position: ReviewPosition | None, message: str) -> list:
        """New values of the page's outputs, in the order of the list `outputs` in `_wire`."""
        import gradio as gr

        started = position is not None
        rest = [gr.Radio(value=CHOOSE), "", ""] if not (started and position.corner) else [gr.skip()] * 3
        head = [str(position) if started else "", gr.Column(visible=not started), gr.Column(visible=started)]
        if not started or not position.tile:
            empty = [gr.Button(visible=False)] * MOST_CHOICES
            return [*head, None, "", escape(message), self._progress(position) if started else "", *rest, *empty]
        view = self.actions.view(position)
        labels = self.review.labels_of(position.tile, view, merged=True)
        root = view.root(position.region)
        image = draw_regions(self.review.tiles.image(position.tile), labels, root, list(view.last), position.corner)
        choices = self.actions.choices(position)
        buttons = [gr.Button(f"{k + 1}  {choice}", visible=True) for k, choice in enumerate(choices)]
        buttons += [gr.Button(visible=False)] * (MOST_CHOICES - len(buttons))
        body = [image, self._region(position, view, labels == root), escape(message), self._progress(position)]
        return [*head, *body, *rest, *buttons]

    def _region(self, position: ReviewPosition, view, mask) -> str:
        if not position.region:
            return "<b>Pixels outside all regions</b>: split a region off with a box, or continue."
        proposed, last = self.review.proposed(position.tile, view, position.region), view.last.get(position.region)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = f"{columns[0]} {rows[0]} {columns[-1] + 1} {rows[-1] + 1}" if len(rows) else "empty"
        name = f"{escape(proposed.name)} <small>{proposed.confidence:.2f}</small>" if proposed.name else "no name"
        mine = "" if last is None else f"<br>You: {last.action} {escape(str(last.name or last.into or ''))}"
        return (
            f"<h3>Region {position.region}: {name}</h3>{escape(position.tile)}<br><small>{int(mask.sum()):,} pixels,"
            f" box {box} in {mask.shape[1]} x {mask.shape[0]}</small>{mine}"
        )

    def _progress(self, position: ReviewPosition) -> str:
        decided, count = self.review.progress(position.reviewer, position.round)
        return (
            f'<progress value="{decided}" max="{max(1, count)}"></progress><br>{escape(position.reviewer)}, round'
            f" {position.round}: {decided} of {count} regions decided"
        )


def build_page(page: ReviewPage):
    """Build the page on which people review regions, as Gradio blocks."""
    import gradio as gr

    with gr.Blocks(title="Review", delete_cache=(600, 3600), analytics_enabled=False) as blocks:
        _wire(page, blocks, _lay_out(page))
    return blocks


def _lay_out(page: ReviewPage) -> SimpleNamespace:
    """Create the page's components; returns them by name."""
    import gradio as gr

    p = SimpleNamespace()
    p.where = gr.Textbox(visible="hidden", elem_id="where")
    p.dragged = gr.Textbox(visible="hidden", elem_id="dragged")
    gr.HTML(page.names)
    with gr.Column(visible=False) as p.start:
        gr.Markdown("# Review\nDecide for each region whether its proposed name is right. Decisions are saved at once.")
        p.who = gr.Textbox(label="Your name", elem_id="who", max_lines=1)
        p.which = gr.Number(page.round, label="Round", precision=0, minimum=1, info="1: all regions. 2: disagreements.")
        p.go = gr.Button("Begin", variant="primary")
    with gr.Column(visible=False) as p.desk:
        gr.HTML(HELP, elem_id="help")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                p.image = gr.Image(
                    elem_id="view", show_label=False, format="jpeg", type="pil", interactive=False, buttons=[]
                )
                p.message = gr.HTML(elem_id="said")
            with gr.Column(scale=2, min_width=320):
                p.progress = gr.HTML(elem_id="progress")
                p.region = gr.HTML(elem_id="region")
                p.choices = [gr.Button(elem_id=f"choice-{k + 1}", size="sm") for k in range(MOST_CHOICES)]
                with gr.Row():
                    p.accept = gr.Button("Accept (a)", elem_id="accept", variant="primary", min_width=100)
                    p.reject = gr.Button("Reject (x)", elem_id="reject", variant="stop", min_width=100)
                    p.undo = gr.Button("Undo (u)", elem_id="undo", min_width=100)
                p.rename = gr.Textbox(label="Another name (r)", elem_id="rename", max_lines=1, info="Enter saves it.")
                gr.HTML("<ul></ul>", elem_id="offers")
                p.mode = gr.Radio([CHOOSE, MERGE, SPLIT], value=CHOOSE, label="Click on the image", elem_id="mode")
                p.entry = gr.Textbox(
                    label="Or type", elem_id="entry", max_lines=1, info="A region number, or x0 y0 x1 y1."
                )
                with gr.Row():
                    p.previous = gr.Button("Previous (p)", elem_id="previous", size="sm", min_width=100)
                    p.next = gr.Button("Next (n)", elem_id="next", size="sm", min_width=100)
                    p.agree = gr.Button("Agreement (g)", elem_id="agreement", size="sm", min_width=100)
                p.agreed = gr.Markdown(elem_id="agreed")
    return p


def _wire(page: ReviewPage, blocks, p: SimpleNamespace) -> None:
    """Connect the events of the components p, from `_lay_out`, to the actions."""
    import gradio as gr

    outputs = [
        p.where,
        p.start,
        p.desk,
        p.image,
        p.region,
        p.message,
        p.progress,
        p.mode,
        p.entry,
        p.rename,
        *p.choices,
    ]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    private |= {"concurrency_id": "review", "concurrency_limit": 1}

    def step(name: str) -> Callable:
        return guarded(functools.partial(page.step, name))

    @guarded
    def arrive(request):
        return page.arrive(request)

    def on_load(request: gr.Request):
        return arrive(request)

    blocks.load(on_load, None, outputs, **private).then(None, p.where, None, js=_ADDRESS)
    gr.on([p.go.click, p.who.submit], guarded(page.begin), [p.who, p.which], outputs, **private).then(
        None, p.where, None, js=_ADDRESS
    )
    for name in ("accept", "reject", "undo", "next", "previous"):
        getattr(p, name).click(step(name), p.where, outputs, **private)
    take = guarded(lambda text, label: page.step("choose", text, label.split("  ", 1)[1]))
    for button in p.choices:
        button.click(take, [p.where, button], outputs, **private)
    p.rename.submit(step("rename"), [p.where, p.rename], outputs, **private)
    p.entry.submit(step("enter"), [p.where, p.mode, p.entry], outputs, **private)
    click = guarded(page.click)

    def on_select(text, chosen, event: gr.SelectData):
        return click(text, chosen, *event.index)

    p.dragged.change(guarded(page.drag), [p.where, p.dragged], outputs, **private)
    p.image.select(on_select, [p.where, p.mode], outputs, **private)
    p.agree.click(guarded(page.agreement), None, p.agreed, **private)
