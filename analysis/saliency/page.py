"""Figures, tables and texts on Grad-CAM maps; `analysis.gradcam` makes the maps."""

from __future__ import annotations

import io
import json
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.document import arms, figures, tables
from analysis.document.markup import escape
from analysis.document.report import Figure, Section, Text, join
from analysis.results import statistics
from analysis.results.folder import UNREADABLE, Results
from core.storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STORE = "gradcam.npz"
INSIDE = "map in object (%)"
_COLOURS = "viridis"  # rises evenly in lightness: safe for the colour-blind, and in grey print
_OPACITY = 0.6
EACH = 5  # right and wrong images that are shown of a class
_LEAST_PIXELS = 160  # small images are drawn as blocks, so that no viewer smooths them
_MOST_PIXELS = 256
_SCORES = ("deletion", "insertion", "random_deletion", "random_insertion")


@dataclass(frozen=True)
class Maps:
    """The maps of a study's best network, and all numbers on them."""

    # A row per validation image of the chosen classes: file, label, predicted, right,
    # true_probability, predicted_probability, place (in `pictures`, -1 if not shown), inside, area
    # and half (`analysis.saliency.maps.shares`), and for shown images `_SCORES`.
    images: pd.DataFrame
    pictures: np.ndarray  # (K, 3, S, S) uint8, the images that are shown
    maps: np.ndarray  # (K, h, w) float32 in [0, 1], with respect to the true class
    classes: tuple[str, ...]  # names of all C classes
    chosen: tuple[int, ...]  # labels of the classes shown, in their order
    # asked, trial, epoch, layers, note, steps, blur, and how the network's scores compare with the
    # recorded ones: images, accuracy, recorded, difference
    about: dict[str, Any]

    def group(self, label: int | None, right: bool) -> pd.DataFrame:
        """The right or wrong images of a class, or of all chosen classes."""
        rows = self.images[self.images["right"] == right]
        return rows if label is None else rows[rows["label"] == label]

    def shown(self, label: int | None, right: bool) -> pd.DataFrame:
        """Those of `group` that are shown, in their order."""
        rows = self.group(label, right)
        return rows[rows["place"] >= 0].sort_values("place")


def store(found: Maps, path: Path) -> None:
    """Keep the maps in gradcam.npz of the result folder `path`."""
    told = {
        "images": found.images.to_dict("list"),
        "classes": found.classes,
        "chosen": found.chosen,
        "about": found.about,
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, pictures=found.pictures, maps=found.maps, told=np.array(json.dumps(told))
    )
    write_bytes(path / STORE, buffer.getvalue())


def restore(path: Path) -> Maps | None:
    """Read gradcam.npz of the result folder `path`; None where it is missing or damaged."""
    try:
        with np.load(io.BytesIO((path / STORE).read_bytes()), allow_pickle=False) as kept:
            told = json.loads(str(kept["told"]))
            return Maps(
                pd.DataFrame(told["images"]),
                kept["pictures"],
                kept["maps"],
                tuple(told["classes"]),
                tuple(told["chosen"]),
                told["about"],
            )
    except (*UNREADABLE, TypeError):
        return None


def sections(results: Results, found: Maps) -> list[Section]:
    """Write the figures and tables into the result folder; return a section on all, then each."""
    table, listed = summary(found), image_table(found)
    for one in (table, listed):
        tables.write(one, results.path / "tables")
    names = _file_names(found)
    return [
        Section("Grad-CAM", (Text(_about(found)), table, Text(_overall(found)))),
        *(
            Section(
                f"Grad-CAM: {found.classes[label]}",
                (_class_figure(results, found, label, name), Text(class_text(found, label))),
                optional=True,
            )
            for label, name in zip(found.chosen, names, strict=True)
        ),
    ]


def _file_names(found: Maps) -> list[str]:
    """gradcam_<class> in small letters, without anything that is special in a path."""
    names = [re.sub(r"\W+", "_", found.classes[label].lower()).strip("_") for label in found.chosen]
    return [
        f"gradcam_{name}" if name and names.count(name) == 1 else f"gradcam_{name}_{label}"
        for label, name in zip(found.chosen, names, strict=True)
    ]


def headline(found: Maps) -> tables.Table:
    """The columns of `summary` that fit a terminal."""
    table = summary(found)
    inside = [INSIDE] if any(column.header == INSIDE for column in table.columns) else []
    short = table.show("class", "images", "n", *inside, "deletion", "insertion")
    return replace(short, note="Deletion and insertion of random maps in parentheses.")


def summary_numbers(found: Maps) -> pd.DataFrame:
    """A row per class and kind, then one over all classes for each kind.

    Returns:
        class, images ("right" or "wrong"), n, true_probability, inside with low and high (95 % t
        interval over images), area, half; shown, and the means of the scores over the shown.
    """
    rows = []
    for label in (*found.chosen, None):
        for right in (True, False):
            group, shown = found.group(label, right), found.shown(label, right)
            inside = statistics.t_interval(group["inside"].dropna())
            rows.append(
                {
                    "class": "all of these" if label is None else found.classes[label],
                    "images": "right" if right else "wrong",
                    "n": len(group),
                    "true_probability": group["true_probability"].mean(),
                    "inside": inside.mean,
                    "inside_low": inside.low,
                    "inside_high": inside.high,
                    "area": group["area"].mean(),
                    "half": group["half"].mean(),
                    "shown": len(shown),
                    **{name: shown[name].mean() for name in _SCORES},
                }
            )
    return pd.DataFrame(rows)


def summary(found: Maps) -> tables.Table:
    """The summary over classes: tables/gradcam."""
    numbers = summary_numbers(found)
    masked = bool(numbers["area"].notna().any())
    objects = tables.plus_minus("inside", INSIDE), *arms.shares(area="object")
    columns = (
        *arms.texts("class", "images"),
        *arms.numbers(n="n"),
        *(objects if masked else ()),
        *arms.shares(half="half in"),
        *arms.numbers(shown="shown"),
        *map(_against_random, ("deletion", "insertion")),
    )
    inside = (
        "Map in object: share of the map's mass on the object's pixels, mean ± half of the 95 % t "
        "interval over images; object: the share of the image that it covers, which an even "
        "map would have. "
    )
    return tables.Table(
        "gradcam",
        numbers,
        columns,
        "Grad-CAM of right and wrong validation images, with respect to the true class.",
        f"{inside if masked else ''}Half in: smallest share of the image that holds half of the "
        "map. These are over all n images; deletion and insertion are over the shown ones: area "
        "under the true class's probability while the pixels go or come, hottest first, in "
        "parentheses for random maps of the same resolution. A map that finds what the network "
        "uses has less deletion and more insertion than a random one.",
    )


def _against_random(name: str) -> tables.Column:
    """A column "0.21 (0.35)": the score of the maps, that of random maps."""

    def cell(row: Any) -> str:
        own, chance = row[name], row[f"random_{name}"]
        return f"{own:.2f} ({chance:.2f})" if np.isfinite(own) else tables.MISSING

    return tables.Column(name, cell)


def image_table(found: Maps) -> tables.Table:
    """Every shown image by itself: tables/gradcam_images."""
    rows = found.images[found.images["place"] >= 0].sort_values("place")
    names = dict(enumerate(found.classes))
    rows = rows.assign(true=rows["label"].map(names), predicted=rows["predicted"].map(names))
    columns = (
        tables.text("file", "file", wrap=True),
        *arms.texts("predicted"),
        *arms.shares(predicted_probability="its p", true_probability="true p"),
        tables.number("inside", INSIDE, 1, 100.0),
        tables.number("deletion", "deletion", 2),
        tables.number("insertion", "insertion", 2),
    )
    kept = ["file", "true", "predicted", "true_probability", "predicted_probability"]
    numbers = rows[[*kept, "inside", "area", "half", *_SCORES]].reset_index(drop=True)
    return tables.Table("gradcam_images", numbers, columns, "The images shown, by class.")


def _about(found: Maps) -> str:
    """What was mapped, how, of which images, and whether the network is the recorded one."""
    about, (height, width) = found.about, found.maps.shape[1:]
    asked = about["asked"]
    rule = (
        f"drawn at random (seed {asked['seed']})"
        if asked["pick"] == "random"
        else "whose prediction was the most confident"
    )
    sigma = about["blur"] * found.pictures.shape[-1]
    note = f"{escape(about['note'])} " if about["note"] else ""
    return (
        f"The best network of all trials (`{about['trial']}`, weights of epoch {about['epoch']}) "
        "and where in an image it finds the **true** class, also where it chose another. "
        f"{_checked(about)}\n\nA layer's map is the sum of its channels, each weighted by the mean "
        "gradient of the true class's logit, with what is below 0 cut off ([Selvaraju et al. "
        "2017](https://arxiv.org/abs/1610.02391), equations 1 and 2). The maps of the last "
        f"{about['layers']} convolution layers (all of the last stage, {height} x {width} values "
        "each, read after the convolution's norm) are scaled to 0 to 1, averaged, scaled again and "
        f"enlarged to the image.\n\n{note}Of each class up to {EACH} right and {EACH} wrong "
        f"validation images are shown, those {rule}. Deletion replaces pixels by the mean colour "
        f"of the normalisation, insertion brings them back into the image blurred by {sigma:.3g} "
        f"pixels, in {about['steps']} steps ([Petsiuk et al. "
        "2018](https://arxiv.org/abs/1806.07421), section 4.2)."
    )


def _checked(about: dict[str, Any]) -> str:
    now = f"{100 * about['accuracy']:.2f} %"
    if about["recorded"] is None:
        return f"Its validation accuracy is {now}."
    if abs(about["recorded"] - about["accuracy"]) * about["images"] > max(
        1.5, 0.002 * about["images"]
    ):
        return (
            f"**It scores {now} on the validation images now, and {100 * about['recorded']:.2f} % "
            "are recorded for it: images or code have changed since, and what follows may not be "
            "about the study's network.**"
        )
    text = (
        f"Scored again, it gets {now} of {about['images']:,} validation images right; the study "
        f"recorded {100 * about['recorded']:.2f} % for that epoch."
    )
    if about["difference"] is not None:
        most = max(1e-6, about["difference"])
        text += f" No probability differs from the stored ones by more than {most:.1g}."
    return text


def _overall(found: Maps) -> str:
    """Observations over all chosen classes, from their own numbers."""
    right, wrong = found.group(None, True), found.group(None, False)
    lines = []
    for group, kind in ((right, "right"), (wrong, "wrong")):
        line = _concentration(group)
        if line:
            lines.append(f"- Where the network is {kind} ({len(group)} images), {line}.")
    ratios = {}
    for label in found.chosen:
        group = found.group(label, True)
        if group["inside"].notna().any():
            ratios[found.classes[label]] = group["inside"].mean() / group["area"].mean()
    if len(ratios) > 1:
        low, high = min(ratios, key=lambda k: ratios[k]), max(ratios, key=lambda k: ratios[k])
        lines.append(
            f"- Of right images the mean share of the map on the object, over that of an even map, "
            f"runs from {ratios[low]:.1f} in {escape(low)} to {ratios[high]:.1f} in "
            f"{escape(high)}; a class has few images, and no interval is given."
        )
    shown = pd.concat([found.shown(None, True), found.shown(None, False)])
    for name, better, sign in (("deletion", "less", 1), ("insertion", "more", -1)):
        gain = sign * (shown[f"random_{name}"] - shown[name])
        lines.append(
            f"- {name.capitalize()}: {better} is better; the maps have "
            f"{shown[name].mean():.2f}, random ones {shown[f'random_{name}'].mean():.2f}; a map "
            f"beats its random one in {int((gain > 0).sum())} of {len(gain)} images."
        )
    empty = int(found.images["half"].isna().sum())
    if empty:
        lines.append(f"- {empty} maps are 0 everywhere: no channel speaks for the true class.")
    return "\n".join(lines)


def _concentration(group: pd.DataFrame) -> str:
    """How much of the maps lies on the object, or in how much of the image half of it lies."""
    known = group[group["inside"].notna()]
    if len(known):
        inside, area = known["inside"].mean(), known["area"].mean()
        return (
            f"{100 * inside:.1f} % of the map lies on the object, which covers {100 * area:.1f} % "
            f"of the image: {inside / area:.1f} times what an even map would have"
        )
    if group["half"].notna().any():
        return f"half of the map lies in {100 * group['half'].mean():.1f} % of the image"
    return ""


def class_text(found: Maps, label: int) -> str:
    """Observations on one class, from its own numbers."""
    right, wrong = found.group(label, True), found.group(label, False)
    total = len(right) + len(wrong)
    text = f"{len(right)} of {total} validation images are classified right"
    taken = wrong["predicted"].value_counts(sort=False)
    if len(wrong):
        # the most frequent, of equally frequent ones the first in the order of the classes
        other = max(sorted(taken.index), key=lambda k: taken[k])
        text += (
            f" and {len(wrong)} wrong, most often taken for {escape(found.classes[other])} "
            f"({taken[other]})"
        )
    text += "."
    for group, kind in ((right, "right"), (wrong, "wrong")):
        line = _concentration(group)
        text += f" Where it is {kind}, {line}." if line else ""
    for group, kind in ((right, "right"), (wrong, "wrong")):
        if len(group) < EACH:
            be = "is" if len(group) == 1 else "are"
            count = "No image is" if group.empty else f"Only {len(group)} {be}"
            text += f" {count} {kind}, where {EACH} were to be shown."
    return text


def _class_figure(results: Results, found: Maps, label: int, name: str) -> Figure:
    counts = [
        f"{len(found.shown(label, right))} of {len(found.group(label, right))} {kind}"
        for right, kind in ((True, "right"), (False, "wrong"))
        if len(found.shown(label, right))
    ]
    shown = escape(found.classes[label])
    return Figure(
        figures.save(class_figure(found, label), results.path / "figures", name),
        f"{shown}: {join(counts)} validation images, each with its map for the true class below "
        "it, laid over the image in grey. The colour is the map's value, from 0 (dark) to 1 "
        "(bright) in each image.",
        f"Validation images of {found.classes[label]}, and Grad-CAM maps over them.",
    )


@figures.styled
def class_figure(found: Maps, label: int) -> Any:
    """Up to five right images above as many wrong ones, every image with its map below it.

    Returns:
        A Matplotlib figure as wide as the text.
    """
    import matplotlib

    kinds = [right for right in (True, False) if len(found.shown(label, right))]
    figure, axes = figures.panels(EACH, 2 * len(kinds), height=0.5 + 3.05 * len(kinds))
    colours = matplotlib.colormaps[_COLOURS]
    for axis in axes:
        axis.set_axis_off()
    for part, right in enumerate(kinds):
        rows = found.shown(label, right)
        kind = "right" if right else "wrong"
        pairs = [axes[(2 * part + i) * EACH :][:EACH] for i in (0, 1)]
        for column, (above, below) in enumerate(zip(*pairs, strict=True)):
            middle = {"va": "center", "ha": "center", "transform": above.transAxes}
            if column == 0:
                above.text(-0.1, 0.5, kind, rotation=90, weight="bold", **middle)
            if column < len(rows):
                _pair(above, below, found, rows.iloc[column])
            elif column == len(rows):
                above.text(0.5, 0.5, f"no more {kind}\nimages", color="#555555", **middle)
    ramp = _mixed(np.full((256, 3), 0.5), colours, np.linspace(0, 1, 256))
    scale = matplotlib.colors.ListedColormap(ramp)
    figure.colorbar(
        matplotlib.cm.ScalarMappable(cmap=scale),
        ax=axes,
        location="bottom",
        label="map for the true class (0: nothing speaks for it, 1: the most in this image)",
        aspect=50,
        shrink=0.7,
        pad=0.01,
    )
    return figure


def enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Interpolate maps (N, h, w) bilinearly to (N, size, size) float32, as they are drawn."""
    from PIL import Image

    images = (Image.fromarray(np.asarray(one, dtype=np.float32)) for one in maps)
    wide = (image.resize((size, size), Image.Resampling.BILINEAR) for image in images)
    return np.stack([np.asarray(image) for image in wide])


def _mixed(grey: np.ndarray, colours: Any, heat: np.ndarray) -> np.ndarray:
    """Lay the colours of `heat` (...) over grey pixels (..., 3), all in [0, 1]."""
    return (1 - _OPACITY) * grey + _OPACITY * colours(heat)[..., :3]


def _pair(above: Axes, below: Axes, found: Maps, row: pd.Series) -> None:
    """Draw one image, and below it the image in grey under its map."""
    import matplotlib

    picture = found.pictures[row["place"]].transpose(1, 2, 0) / 255
    grey = np.repeat(picture @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)
    heat = enlarge(found.maps[row["place"]][None], picture.shape[0])[0]
    overlay = _mixed(grey, matplotlib.colormaps[_COLOURS], heat)
    for axis, pixels in ((above, picture), (below, overlay)):
        axis.imshow(_blocks(pixels), interpolation="none")
    names = found.classes
    lines = [
        *_lines(f"true: {names[row['label']]}", row["true_probability"]),
        *_lines(f"predicted: {names[row['predicted']]}", row["predicted_probability"]),
    ]
    above.set_title(figures.literal("\n".join(lines)), loc="left", fontsize=6.8, linespacing=1.15)


def _lines(words: str, probability: float) -> list[str]:
    return textwrap.wrap(f"{words} {_percent(probability)}", 24)


def _percent(probability: float) -> str:
    """A probability as per cent; never a rounded 0 or 100. The space does not break."""
    percent = 100 * probability
    if percent < 0.1:
        return "<0.1\u00a0%"
    return f"{percent:.1f}\u00a0%" if percent < 99.95 else ">99.9\u00a0%"


def _blocks(pixels: np.ndarray) -> np.ndarray:
    """Repeat the pixels of a small image, average those of a large one, as 8-bit colours."""
    from PIL import Image

    size = len(pixels)
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    if size > _MOST_PIXELS:
        image = image.resize((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.BOX)
    times = max(1, -(-_LEAST_PIXELS // size))
    return np.asarray(image).repeat(times, axis=0).repeat(times, axis=1)
