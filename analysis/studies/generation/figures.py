"""Figures of the generation study: grids of images, curves, neighbours, ways through latents."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.document import figures
from analysis.document.markup import escape
from analysis.document.report import Figure
from analysis.results import statistics
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


@figures.styled
def samples_figure(results: Results, shown: Mapping[str, Stored]) -> Figure:
    """Final samples of each family beside real images."""
    first = next(iter(shown.values()))
    columns = columns_of(first)
    panels = {"real (training images)": first.real}
    panels |= {_title(stored): stored.grids[-1] for stored in shown.values()}
    rows = math.ceil(len(panels) / 2)
    tall = math.ceil(len(first.real) / columns)
    figure, axes = figures.panels(2, rows, height=rows * (0.3 + 3.3 * tall / columns))
    for panel, (title, images) in zip(axes, panels.items(), strict=False):
        show(panel, images, columns, title)
    for panel in axes[len(panels) :]:
        panel.axis("off")
    asked = (
        f" Columns: {', '.join(escape(name) for name in first.classes)}."
        if all(stored.config["conditional"] for stored in shown.values()) and columns <= 20
        else ""
    )
    return Figure(
        figures.save(figure, results.path / "figures", "samples"),
        f"Samples of {_epochs(shown)}, not chosen: the first of a fixed seed, from each family's "
        f"best width.{asked}",
        "Grids of real images and of the samples of each family.",
    )


def _epochs(shown: Mapping[str, Stored]) -> str:
    """Which epoch's weights made the samples."""
    epochs = {stored.epoch for stored in shown.values()}
    if None in epochs:
        return "the last epoch"
    said = ", ".join(f"{NAMES[name]} {stored.epoch}" for name, stored in shown.items())
    return f"the epoch whose weights are kept ({said})"


@figures.styled
def progress_figure(results: Results, shown: Mapping[str, Stored]) -> Figure:
    """Samples from the same latents after some epochs, a panel per family."""
    epochs = max(len(stored.grids) for stored in shown.values())
    few = np.unique(np.linspace(0, epochs - 1, min(_EPOCHS, epochs)).round().astype(int))
    columns = columns_of(next(iter(shown.values())))
    wide = figures.FULL / len(shown)
    figure, axes = figures.panels(len(shown), height=0.35 + wide * len(few) / columns)
    for panel, stored in zip(axes, shown.values(), strict=True):
        there = few[few < len(stored.grids)]
        show(
            panel,
            np.concatenate([stored.grids[e][:columns] for e in there]),
            columns,
            NAMES[stored.config["family"]],
        )
    listed = ", ".join(str(epoch + 1) for epoch in few)
    return Figure(
        figures.save(figure, results.path / "figures", "progress"),
        f"From the same latents after epoch {listed} (top to bottom).",
        "Samples of each family at several epochs.",
    )


@figures.styled
def curves_figure(results: Results, yardsticks: Mapping[str, Mapping[str, float]]) -> Figure:
    """Frechet distance and coverage over epochs, a line per family and width."""
    history = results.history.assign(
        group=results.history["family"].astype(str) + " " + results.history["width"].astype(str)
    )
    order = [f"{f} {w}" for f in results.levels("family") for w in results.levels("width")]
    order = [group for group in order if group in set(history["group"])]
    look = figures.styles(order)
    figure, axes = figures.panels(2, height=2.4)
    for panel, (metric, label) in zip(
        axes, (("frechet", "Fréchet distance"), ("coverage", "coverage")), strict=True
    ):
        for group in order:
            figures.curve(
                panel, history[history["group"] == group], metric, look[group], label=group
            )
        for row, line in (("held_out", ":"), ("noise", "--")):
            if row in yardsticks:
                panel.axhline(
                    yardsticks[row][metric], color="#777777", linestyle=line, linewidth=0.9
                )
        panel.set_ylabel(label)
        figures.whole_numbers(panel, "epoch")
    axes[0].set_yscale("log")
    figures.legend_below(figure, axes[0], min(len(order), 6))
    return Figure(
        figures.save(figure, results.path / "figures", "curves"),
        "Fréchet distance (in labtune's classifier features, logarithmic) and coverage over "
        "epochs. Grey: held-out real images (dotted) and noise (dashed). "
        + figures.band_text(history, "group"),
        "Curves of Fréchet distance and coverage per family and width.",
    )


@figures.styled
def neighbours_figure(results: Results, stored: Stored) -> Figure:
    """Samples above their nearest training images, and the same for held-out images."""
    figure, axes = figures.panels(1, 2, height=3.1)
    made = (stored.samples[stored.pairs], stored.pair_images, stored.nearest_distance[stored.pairs])
    real = (
        stored.held_out_images,
        stored.held_out_nearest,
        stored.held_out_distance[stored.held_out_pairs],
    )
    titles = (
        f"samples of {NAMES[stored.config['family']]} (top), nearest training image (bottom)",
        "held-out real images (top), nearest training image (bottom)",
    )
    for panel, (images, nearest, distances), title in zip(axes, (made, real), titles, strict=True):
        count = min(_PAIRS, len(images))
        step = show(panel, np.concatenate([images[:count], nearest[:count]]), count, title)
        for number in range(count):
            panel.text(
                (number + 0.5) * step,
                panel.get_ylim()[0] + 2,
                f"{distances[number]:.0f}",
                ha="center",
                va="top",
                fontsize=7,
            )
    return Figure(
        figures.save(figure, results.path / "figures", "neighbours"),
        "Evenly spaced samples of the best trial shown here, and held-out images, each above the "
        "training image nearest in pixels; below it their root mean square difference in grey "
        "levels (of 255).",
        "Samples and held-out images with their nearest training images.",
    )


@figures.styled
def distances_figure(results: Results, shown: Mapping[str, Stored]) -> Figure:
    """How near samples and held-out images are to the training images, as cumulative shares."""
    look = figures.styles(list(shown))
    first = next(iter(shown.values()))
    figure, axes = figures.panels(2, height=2.1, sharey=True)
    kinds = (
        ("distance", "distance to the nearest (grey levels)"),
        ("ratio", "nearest over mean of the 50 nearest"),
    )
    for panel, (kind, label) in zip(axes, kinds, strict=True):
        _shares(panel, getattr(first, f"held_out_{kind}"), "held-out", "#777777", "--")
        for family, stored in shown.items():
            values = getattr(stored, f"nearest_{kind}")
            _shares(panel, values, family, look[family].color, "-")
        panel.set_xlabel(label)
    axes[0].set_ylabel("share of images")
    figures.legend_below(figure, axes[0], len(shown) + 1)
    return Figure(
        figures.save(figure, results.path / "figures", "distances"),
        "Share of images that are at most so near to a training image. A family that copied would "
        "rise left of the held-out images on the right-hand side; blurred images lie left on the "
        "left-hand side without being copies.",
        "Cumulative distances to the nearest training image.",
    )


@figures.styled
def interpolation_figure(results: Results, shown: Mapping[str, Stored]) -> Figure:
    """Images along arcs between two latents of one label, a panel per family."""
    wide = figures.FULL / len(shown)
    rows, steps = next(iter(shown.values())).interpolation.shape[:2]
    figure, axes = figures.panels(len(shown), height=0.35 + wide * rows / steps)
    for panel, stored in zip(axes, shown.values(), strict=True):
        images = stored.interpolation
        show(panel, images.reshape(-1, *images.shape[2:]), steps, NAMES[stored.config["family"]])
    return Figure(
        figures.save(figure, results.path / "figures", "interpolation"),
        "Each row goes along the arc from one latent to another, with the label held.",
        "Interpolations between latents for each family.",
    )


@figures.styled
def trajectory_figure(results: Results, stored: Stored) -> Figure:
    """From noise to image along the flow."""
    states = stored.trajectory.swapaxes(0, 1)
    rows, columns = states.shape[:2]
    wide = figures.HALF
    figure, (axes, *_) = figures.panels(width=wide, height=0.4 + wide * rows / columns)
    step = show(axes, states.reshape(-1, *states.shape[2:]), columns, "")
    for number, time in enumerate(stored.trajectory_times):
        axes.text(
            (number + 0.5) * step, -4, f"t = {time:.1f}", ha="center", va="bottom", fontsize=7
        )
    return Figure(
        figures.save(figure, results.path / "figures", "trajectory"),
        f"The way of flow matching from noise (t = 0) to an image (t = 1), by the sampler "
        f"{stored.config['sampler']} with {stored.config['sampler_steps']} steps.",
        "States of the flow's integration.",
        "half",
    )


def finished(results: Results) -> pd.DataFrame:
    """Finished trials with a finite distance."""
    return statistics.usable(results.trials, "frechet")


def _shares(
    axes: "Axes", values: Sequence[Any] | np.ndarray, label: str, color: str, line: str
) -> None:
    ordered = np.sort(np.asarray(values, dtype=float))
    axes.plot(
        ordered, np.arange(1, len(ordered) + 1) / len(ordered), line, color=color, label=label
    )


def _title(stored: Stored) -> str:
    config = stored.config
    return f"{NAMES[config['family']]}, width {config['width']}, seed {config['seed']}"
