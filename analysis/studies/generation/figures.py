"""Figures of the generation study: grids of images, curves, neighbours, ways through latents."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.document import arms, figures
from analysis.document.markup import escape
from analysis.results.folder import Results
from analysis.studies.generation.samples import Stored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"vae": "VAE", "dcgan": "DCGAN", "flow": "flow matching"}
_EPOCHS = 6  # shown of a training
_PAIRS = 12
_SHARP = 64  # pixels of an image as drawn, at least: enlarged without smoothing


def canvas(images: np.ndarray, columns: int) -> np.ndarray:
    """Lay images (N, C, S, S) uint8 out in rows of `columns`, as (H, W, 3), with white gaps."""
    size = images.shape[-1]
    gap = max(1, size // 16)
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (size + gap) - gap, columns * (size + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = (part * (size + gap) for part in divmod(number, columns))
        sheet[y : y + size, x : x + size] = image.transpose(1, 2, 0)
    scale = math.ceil(_SHARP / size)
    return sheet.repeat(scale, 0).repeat(scale, 1)


def show(axes: "Axes", images: np.ndarray, columns: int, title: str) -> float:
    """Draw images (N, C, S, S) in rows of `columns`, without axes; return a column's width."""
    sheet = canvas(images, columns)
    axes.imshow(sheet, interpolation="none")
    axes.set_title(title, loc="left")
    axes.axis("off")
    return sheet.shape[1] / columns


def columns_of(stored: Stored) -> int:
    """How many images of a grid stand in a row: one of each class, for up to 20 classes."""
    classes = len(np.unique(stored.grid_labels))
    return classes if 4 <= classes <= 20 else 10


@arms.drawn("samples", "Grids of real images and of the samples of each family.")
def samples_figure(results: Results, shown: Mapping[str, Stored]) -> arms.Drawn:
    """Final samples of each family beside real images."""
    first = next(iter(shown.values()))
    columns = columns_of(first)
    panels = {"real (training images)": first.real}
    panels |= {_title(stored): stored.grids[-1] for stored in shown.values()}
    rows, tall = math.ceil(len(panels) / 2), math.ceil(len(first.real) / columns)
    figure, axes = figures.panels(2, rows, height=rows * (0.3 + 3.3 * tall / columns))
    for panel, (title, images) in zip(axes, panels.items(), strict=False):
        show(panel, images, columns, title)
    for panel in axes[len(panels) :]:
        panel.axis("off")
    by_class = all(stored.config["conditional"] for stored in shown.values()) and columns <= 20
    asked = f" Columns: {', '.join(escape(name) for name in first.classes)}." if by_class else ""
    return figure, (
        f"Samples of {_epochs(shown)}, not chosen: the first of a fixed seed, from each family's "
        f"best width.{asked}"
    )


def _epochs(shown: Mapping[str, Stored]) -> str:
    """Which epoch's weights made the samples."""
    epochs = {stored.epoch for stored in shown.values()}
    if None in epochs:
        return "the last epoch"
    said = ", ".join(f"{NAMES[name]} {stored.epoch}" for name, stored in shown.items())
    return f"the epoch whose weights are kept ({said})"


@arms.drawn("progress", "Samples of each family at several epochs.")
def progress_figure(results: Results, shown: Mapping[str, Stored]) -> arms.Drawn:
    """Samples from the same latents after some epochs, a panel per family."""
    epochs = max(len(stored.grids) for stored in shown.values())
    few = np.unique(np.linspace(0, epochs - 1, min(_EPOCHS, epochs)).round().astype(int))
    columns = columns_of(next(iter(shown.values())))
    wide = figures.FULL / len(shown)
    figure, axes = figures.panels(len(shown), height=0.35 + wide * len(few) / columns)
    for panel, stored in zip(axes, shown.values(), strict=True):
        there = [stored.grids[epoch][:columns] for epoch in few[few < len(stored.grids)]]
        show(panel, np.concatenate(there), columns, NAMES[stored.config["family"]])
    listed = ", ".join(str(epoch + 1) for epoch in few)
    return figure, f"From the same latents after epoch {listed} (top to bottom)."


@arms.drawn("curves", "Curves of Fréchet distance and coverage per family and width.")
def curves_figure(results: Results, yardsticks: Mapping[str, Mapping[str, float]]) -> arms.Drawn:
    """Frechet distance and coverage over epochs, a line per family and width."""
    history = results.history
    group = history["family"].astype(str) + " " + history["width"].astype(str)
    history = history.assign(group=group)
    order = [f"{f} {w}" for f in results.levels("family") for w in results.levels("width")]
    look = figures.styles([name for name in order if name in set(group)])
    figure, axes = figures.panels(2, height=2.4)
    shown = (("frechet", "Fréchet distance"), ("coverage", "coverage"))
    for panel, (metric, label) in zip(axes, shown, strict=True):
        for name, style in look.items():
            figures.curve(panel, history[group == name], metric, style, label=name)
        for row, line in (("held_out", ":"), ("noise", "--")):
            if row in yardsticks:
                level = yardsticks[row][metric]
                panel.axhline(level, color="#777777", linestyle=line, linewidth=0.9)
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "epoch")
    axes[0].set_yscale("log")
    figures.legend_below(figure, axes[0], min(len(look), 6))
    return figure, (
        "Fréchet distance (in labtune's classifier features, logarithmic) and coverage over "
        "epochs. Grey: held-out real images (dotted) and noise (dashed). "
        + figures.band_text(history, "group")
    )


@arms.drawn("neighbours", "Samples and held-out images with their nearest training images.")
def neighbours_figure(results: Results, stored: Stored) -> arms.Drawn:
    """Samples above their nearest training images, and the same for held-out images."""
    s = stored
    made = s.samples[s.pairs], s.pair_images, s.nearest_distance[s.pairs]
    distances = s.held_out_distance[s.held_out_pairs]
    shown = {f"samples of {NAMES[s.config['family']]}": made}
    shown["held-out real images"] = s.held_out_images, s.held_out_nearest, distances
    figure, axes = figures.panels(1, 2, height=3.1)
    for panel, (what, (images, nearest, distances)) in zip(axes, shown.items(), strict=True):
        count, title = min(_PAIRS, len(images)), f"{what} (top), nearest training image (bottom)"
        step = show(panel, np.concatenate([images[:count], nearest[:count]]), count, title)
        for number in range(count):
            at = (number + 0.5) * step, panel.get_ylim()[0] + 2
            panel.text(*at, f"{distances[number]:.0f}", ha="center", va="top", fontsize=7)
    return figure, (
        "Evenly spaced samples of the best trial shown here, and held-out images, each above the "
        "training image nearest in pixels; below it their root mean square difference in grey "
        "levels (of 255)."
    )


@arms.drawn("distances", "Cumulative distances to the nearest training image.")
def distances_figure(results: Results, shown: Mapping[str, Stored]) -> arms.Drawn:
    """How near samples and held-out images are to the training images, as cumulative shares."""
    look, first = figures.styles(list(shown)), next(iter(shown.values()))
    figure, axes = figures.panels(2, height=2.1, sharey=True)
    kinds = (
        ("distance", "distance to the nearest (grey levels)"),
        ("ratio", "nearest over mean of the 50 nearest"),
    )
    for panel, (kind, label) in zip(axes, kinds, strict=True):
        _shares(panel, getattr(first, f"held_out_{kind}"), "held-out", "#777777", "--")
        for family, stored in shown.items():
            _shares(panel, getattr(stored, f"nearest_{kind}"), family, look[family].color, "-")
        panel.set_xlabel(label)
    axes[0].set_ylabel("share of images")
    figures.legend_below(figure, axes[0], len(shown) + 1)
    return figure, (
        "Share of images that are at most so near to a training image. A family that copied would "
        "rise left of the held-out images on the right-hand side; blurred images lie left on the "
        "left-hand side without being copies."
    )


@arms.drawn("interpolation", "Interpolations between latents for each family.")
def interpolation_figure(results: Results, shown: Mapping[str, Stored]) -> arms.Drawn:
    """Images along arcs between two latents of one label, a panel per family."""
    wide = figures.FULL / len(shown)
    rows, steps = next(iter(shown.values())).interpolation.shape[:2]
    figure, axes = figures.panels(len(shown), height=0.35 + wide * rows / steps)
    for panel, stored in zip(axes, shown.values(), strict=True):
        images = stored.interpolation
        show(panel, images.reshape(-1, *images.shape[2:]), steps, NAMES[stored.config["family"]])
    return figure, "Each row goes along the arc from one latent to another, with the label held."


@arms.drawn("trajectory", "States of the flow's integration.", "half")
def trajectory_figure(results: Results, stored: Stored) -> arms.Drawn:
    """From noise to image along the flow."""
    states = stored.trajectory.swapaxes(0, 1)
    rows, columns = states.shape[:2]
    wide = figures.HALF
    figure, (axes, *_) = figures.panels(width=wide, height=0.4 + wide * rows / columns)
    step = show(axes, states.reshape(-1, *states.shape[2:]), columns, "")
    look = {"ha": "center", "va": "bottom", "fontsize": 7}
    for number, time in enumerate(stored.trajectory_times):
        axes.text((number + 0.5) * step, -4, f"t = {time:.1f}", **look)
    return figure, (
        f"The way of flow matching from noise (t = 0) to an image (t = 1), by the sampler "
        f"{stored.config['sampler']} with {stored.config['sampler_steps']} steps."
    )


def _shares(
    axes: "Axes", values: Sequence[Any] | np.ndarray, label: str, color: str, line: str
) -> None:
    x = np.sort(np.asarray(values, dtype=float))
    axes.plot(x, np.arange(1, len(x) + 1) / len(x), line, color=color, label=label)


def _title(stored: Stored) -> str:
    config = stored.config
    return f"{NAMES[config['family']]}, width {config['width']}, seed {config['seed']}"
