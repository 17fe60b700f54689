"""Write one table of all results next to published results, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from skysense_o.shipped_files import shipped_file
from skysense_o.text_files import read_json_file
from skysense_o.whole_files import whole, write_text

PUBLISHED = shipped_file("datasets/published_results.json")
OURS = "SkySense-O"
MAIN = {"segmentation": "mIoU", "classification": "top1", "image-text": "image_R@1", "vqa": "model/overall"}
BESIDE = {
    "segmentation": ("mIoU_predicted", "mIoU_foreground", "foreground_IoU", "pACC"),
    "classification": ("top5", "chance"),
    "image-text": ("text_R@1", "text_R@5", "text_R@10", "image_R@5", "image_R@10"),
    "vqa": ("model/average", "model/human", "question_only/overall", "question_only/human", "shuffled/overall",
            "shuffled/human"),
}  # fmt: skip


def read_published() -> dict:
    """Read the published results from datasets/published_results.json."""
    return read_json_file(PUBLISHED)


def rows_of(results: Sequence[dict], left_out: dict[str, str]) -> list[dict]:
    """Make the rows of the table: one per evaluated data set, then one per data set that was left out.

    Args:
        results: each with "data_set", "row" (data set without its split), "task", "items", "numbers" and "record".
        left_out: data set -> reason.

    Returns:
        Rows, each a dict from column to text; percentages have two decimals.
    """
    models = read_published()["models"]
    rows = []
    for body in results:
        task, numbers = body["task"], body["numbers"]
        known = {model: values[body["row"]] for model, values in models.items() if body["row"] in values}
        others = {model: value for model, value in known.items() if model != OURS}
        best = max(others, key=others.get, default=None)
        main = numbers.get(MAIN[task])
        interval = [100 * numbers[key] for key in ("top1_low", "top1_high") if key in numbers]
        rows.append(
            {
                "data set": body["data_set"],
                "task": task,
                "items": body["items"],
                "metric": MAIN[task],
                "this model": _percent(main) + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else ""),
                f"{OURS}, published": known.get(OURS, ""),
                "best other, published": f"{others[best]} ({best})" if best else "",
                "beside": ", ".join(f"{key} {_percent(numbers[key])}" for key in BESIDE[task] if key in numbers),
                "protocol": body["record"]["protocol"]["name"] or "whole" if task == "segmentation" else "",
            }
        )
    return rows + [{"data set": name, "beside": reason} for name, reason in left_out.items()]


def write_tables(folder: Path, results: Sequence[dict], left_out: dict[str, str]) -> str:
    """Write `results.md`, `.csv` and `.json` to a folder.

    Args:
        folder: folder to write to; it is created if needed.
        results, left_out: see `rows_of`.

    Returns:
        The content of results.md.
    """
    rows, published = rows_of(results, left_out), read_published()
    heads = list(rows[0]) if rows else ["data set"]
    measured = tabulate([[row.get(head, "") for head in heads] for row in rows], heads, tablefmt="github")
    notes = [f"- published, {task}: {text}." for task, text in published["protocols"].items()]
    text = "\n".join(
        [
            "All metrics are in percent. mIoU leaves out absent classes; mIoU_predicted counts an absent class as 0 if"
            " it is predicted. Brackets contain 95 % confidence intervals.",
            "",
            measured,
            "",
            f"Published numbers: {published['source']}. Their protocols:",
            *notes,
            "",
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.md", text)
    with whole(folder / "results.csv") as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        writer.writerows(rows)
    body = {"results": list(results), "left_out": left_out, "published": published}
    write_text(folder / "results.json", json.dumps(without_nan(body), indent=1))
    return text


def without_nan(value):
    """Replace NaN by None, recursively, because JSON has no NaN.

    >>> without_nan({"mIoU": float("nan"), "IoU": [0.5]})
    {'mIoU': None, 'IoU': [0.5]}
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.2f}"
