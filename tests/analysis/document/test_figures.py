"""Figures: one look for each norm, text that is legible in print, the same bytes every time."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from analysis.document import figures
from analysis.results.folder import load
from tests.support.results import NORMS
from tests.support.results import norms as build


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return load(build(tmp_path_factory.mktemp("figures"), epochs=5, predictions=False))


@pytest.fixture(scope="module")
def drawn(results):
    metrics = {"train_loss_running": "training", "val_loss": "validation"}
    shown = figures.splits(results.history, metrics, "norm")
    return figures.curves(shown, "norm", list(NORMS), "loss (nats)")


def test_every_category_has_its_own_look_whatever_else_is_shown():
    assert set(figures.NORM_STYLES) == set(NORMS)
    assert len({style.color for style in figures.NORM_STYLES.values()}) == len(NORMS)
    assert len({style.marker for style in figures.NORM_STYLES.values()}) == len(NORMS)
    alone, among = figures.styles(["gn"]), figures.styles(["other", *NORMS, 16])
    assert alone["gn"] == among["gn"] == figures.NORM_STYLES["gn"]
    look = figures.styles(range(20))
    assert len({(style.color, style.marker) for style in look.values()}) == 20
    assert look == figures.styles(range(20))


def test_text_is_at_least_8_points_at_the_printed_width(drawn, results):
    figure, axes = figures.panels(2)
    figures.dots(axes[0], results.trials, "norm", list(NORMS), "seconds", "seconds")
    figures.heatmap(axes[1], np.eye(3), list("abc"), list("xyz"), "{:.1f}".format, label="share")
    for one in (drawn, figure):
        one.canvas.draw()
        sizes = [text.get_fontsize() for text in one.findobj(Text) if text.get_text().strip()]
        assert len(sizes) > 10
        assert min(sizes) >= 8
        assert one.get_figwidth() == figures.FULL <= 174 / 25.4 + 1e-3


def test_curves_show_means_bands_units_and_seeds(drawn, results):
    train, val = drawn.axes
    assert train.get_ylabel() == "loss (nats)"
    assert train.get_xlabel() == val.get_xlabel() == "epoch"
    assert "n = 2 to 3 seeds" in val.get_title(loc="left")
    line = next(line for line in val.lines if line.get_label() == "bn")
    history = results.history[results.history["norm"] == "bn"].groupby("epoch")["val_loss"]
    assert line.get_ydata() == pytest.approx(history.mean().to_numpy())
    assert to_hex(line.get_color()).upper() == figures.NORM_STYLES["bn"].color
    assert line.get_linestyle() == "-"
    assert next(line for line in train.lines if line.get_label() == "bn").get_linestyle() == "--"
    assert len(val.collections) == len(NORMS)  # a band each
    # a diverged trial is a line of its own and not in the mean
    history = results.history[results.history["norm"] == "none"]
    finished = history[history["state"] == "finished"].groupby("epoch")["val_loss"].mean()
    line = next(line for line in val.lines if line.get_label() == "none")
    assert line.get_ydata() == pytest.approx(finished.to_numpy())
    broken = history[history["state"] == "diverged"]["val_loss"].to_numpy()
    assert any(np.array_equal(line.get_ydata(), broken) for line in val.lines)


def test_a_mean_line_ends_where_the_first_seed_ends():
    rows = [(trial, epoch) for trial, last in (("a", 3), ("b", 5)) for epoch in range(1, last + 1)]
    history = pd.DataFrame(rows, columns=["trial", "epoch"]).assign(state="finished")
    history["y"] = 0.1 * history["epoch"]
    figure, (axes,) = figures.panels()
    figures.curve(axes, history, "y", figures.styles(["x"])["x"])
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    assert figure.axes == [axes]


def test_captions_say_what_the_band_is(results):
    assert "95 % t interval" in figures.band_text(results.history, "norm")
    one = results.where(seed=0).history
    assert figures.band_text(one, "norm") == "One seed: no band."
    assert figures.seeds_text(one, "norm") == "n = 1 seed"


def test_files_are_the_same_each_time_and_need_no_font(results, tmp_path):
    shown = figures.splits(results.history, {"val_accuracy": "validation"}, "norm")
    for name in ("one", "two"):
        figure = figures.curves(shown, "norm", list(NORMS), "accuracy (%)")
        assert figures.save(figure, tmp_path / name, "f") == tmp_path / name / "f.svg"
    for name in ("f.svg", "f.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    svg = (tmp_path / "one" / "f.svg").read_text()
    assert "<text" not in svg and "font-family" not in svg
    assert f'width="{figures.FULL * 72:g}pt"' in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg)


def test_the_style_does_not_leak_out_and_an_equation_is_an_svg():
    before = dict(matplotlib.rcParams)
    figures.panels(2)
    svg = figures.equation(r"\hat{x} = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}")
    assert dict(matplotlib.rcParams) == before
    assert svg.count("<svg") == 1
    assert svg == figures.equation(r"\hat{x} = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}")
