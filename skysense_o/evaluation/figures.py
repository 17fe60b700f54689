"""Write the confusion matrix as a table and as a figure.

Shape letters: C classes.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skysense_o.whole_files import whole

MOST_NUMBERS = 25


def write_confusion(path: Path, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Write `<path>.csv` with the counts and `<path>.png` with percentages of each row's sum.

    Args:
        path: without suffix.
        matrix: counts (C,C), or (C,C+1) with "none" as the last column; rows are the truth.
        classes: C names.
    """
    from matplotlib.figure import Figure  # slow to import: it reads the list of fonts

    columns = [*classes, "none"][: matrix.shape[1]]
    with whole(Path(f"{path}.csv")) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ prediction", *columns])
        writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist()))
    if matrix.shape[1] > len(classes) and not matrix[:, -1].any():
        matrix, columns = matrix[:, :-1], columns[:-1]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(24.0, 2.5 + 0.42 * len(classes))
    figure = Figure(figsize=(side + 1, side), dpi=110, layout="constrained")  # without pyplot's global state
    axes = figure.add_subplot()
    heatmap = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 9 if len(classes) <= MOST_NUMBERS else 6
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set(xlabel="prediction", ylabel="truth")
    for row, column in np.argwhere(shares >= 0.005) if len(classes) <= MOST_NUMBERS else ():
        color = "white" if shares[row, column] > 0.55 else "black"
        text = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(heatmap, ax=axes, label="share of the true class")
    with whole(Path(f"{path}.png")) as part:
        figure.savefig(part, format="png")
