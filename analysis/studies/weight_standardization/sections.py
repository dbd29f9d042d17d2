"""The report of the weight standardisation study: which compensation survives training, and why.

Everything comes from study.json, trials.csv, history.csv and predictions/ of one result folder; the
last hold, per trial, the loss of every step and what each norm did in the first ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.document import arms, figures, provenance, tables
from analysis.document.report import Equation, Figure, Section, section
from analysis.results import statistics
from analysis.results.folder import Results, arrays
from analysis.studies.weight_standardization import answers, conversion

Watched = dict[str, dict[str, np.ndarray]]  # by trial
ORIGINAL = "original"
VARIANTS = (ORIGINAL, "A", "B")
LOOK = dict(zip(VARIANTS, figures.styles(VARIANTS).values(), strict=True))
LOOK[ORIGINAL] = figures.Style("#000000", "X", 3.0)  # wide: mode A runs on top of it
RECORDED = ("activation", "gradient", "weight", "bias")


PANELS = {
    "activation": "std after the norm, per channel",
    "gradient": "gradient of its convolution",
    "weight": "mean |weight| of the norm",
}

EQUATIONS = (
    Equation(
        r"n_c = \sqrt{\mathrm{std}(W_c)^2 + 10^{-12}} \qquad \hat{W}_c = W_c / n_c",
        "n of a channel is the root of its kernel's variance plus 1e-12; n divides the kernel",
    ),
    Equation(
        r"\mathrm{A:}\quad \hat{\mu} = \frac{\mu - b}{n} + b \qquad "
        r"\hat{\sigma}^2 = \frac{\sigma^2 + \epsilon}{n^2} - \epsilon",
        "mode A: new mean is (mean minus b) over n plus b; new variance is (variance plus eps) over"
        " n squared, minus eps",
    ),
    Equation(
        r"\mathrm{B:}\quad \hat{\alpha} = n\,\alpha \qquad \hat{\beta} = \beta + "
        r"\frac{\alpha\,(n - 1)(\mu - b)}{\sqrt{\sigma^2 + \epsilon}}",
        "mode B: new weight is n times weight; new bias is bias plus weight times (n minus 1) "
        "times (mean minus b) over the root of variance plus eps",
    ),
)


@provenance.of_finished
def report(results: Results) -> None:
    """Write tables/, figures/, report.html and report.pdf, and print the headline."""
    watched = {trial: load_watch(results.path, trial) for trial in results.with_predictions()}
    table, checked = map_table(results), check_table(results)
    losses, layers = loss_numbers(results, watched), layer_numbers(results, watched)
    sections = _sections(results, table, losses, layers, checked, watched)
    written = [table, loss_table(losses), checked, None if layers.empty else _layer_table(layers)]
    title = "Weight standardisation of a pretrained network"
    short = table.show("variant", "lr", "seeds", *_shown(results)[-1:], "minus original")
    provenance.publish(results, title, sections, written, [short])


def load_watch(path: Path, trial: str) -> dict[str, np.ndarray]:
    """Return the arrays `watch_...` of a trial's predictions, without that prefix.

    Raises UserError: the file is damaged.
    """
    with arrays(path, trial) as stored:
        keys = [key for key in stored if key.startswith("watch_")]
        return {key.removeprefix("watch_"): stored[key] for key in keys}


def map_numbers(results: Results) -> pd.DataFrame:
    """A row per learning rate and variant, in full precision.

    Returns:
        variant, lr, n, of, mean, low, high of val_map at the last epoch; map_1, map_1_low,
        map_1_high and so on of each epoch; difference, difference_low, difference_high and p of the
        last epoch's to the original with the same seed.
    """
    keys, rates = ["variant", "lr"], {"lr": results.levels("lr")}
    table = statistics.compare(results.trials, keys, "val_map").drop(columns="std")
    for epoch in sorted(results.history["epoch"].unique()):
        group = results.history[results.history["epoch"] == epoch]
        name = f"map_{int(epoch)}"
        table = statistics.joined(table, group.rename(columns={"val_map": name}), keys, name)
    against = arms.against(results.trials, "variant", "val_map", ORIGINAL, rates)
    against = against[[*keys, "difference", "difference_low", "difference_high", "p"]]
    return arms.in_order(table.merge(against, on=keys, how="left"), **rates, variant=VARIANTS)


def map_table(results: Results) -> tables.Table:
    """The mAP of every epoch per learning rate and variant: tables/map."""
    columns = (
        tables.text("variant", "variant"),
        tables.scientific("lr", "lr"),
        tables.count_of("n", "of"),
        *(tables.interval(f"map_{name.split()[-1]}", name) for name in _shown(results)),
        tables.difference("difference", "minus original"),
        tables.p_value("p", "p"),
    )
    note = (
        "mAP in per cent on the validation images; mean [95 % t interval] over seeds. “Minus "
        "original”: points at the last epoch, paired by seed, p of the paired t test."
    )
    caption = "Mean average precision after each epoch."
    return tables.Table("map", map_numbers(results), columns, caption, note)


def _shown(results: Results) -> list[str]:
    return [f"epoch {int(epoch)}" for epoch in sorted(results.history["epoch"].unique())]


def loss_numbers(results: Results, watched: Watched) -> pd.DataFrame:
    """Differences of the training loss to the original's, step by step, same seed and lr.

    Returns:
        variant, lr, pairs, steps, steps_watched and the largest absolute difference, in nats, at
        the first step (first), over the watched steps (watched) and over all (whole).
    """
    stored = {
        (row["variant"], row["lr"], row["seed"]): watched[row["trial"]]
        for row in results.trials.to_dict("records")
        if len(watched.get(row["trial"], {}).get("loss", ()))
    }
    rows = []
    for rate in results.levels("lr"):
        for variant in VARIANTS[1:]:
            gaps = [
                _gaps(found, stored[ORIGINAL, rate, seed])
                for (name, its_rate, seed), found in stored.items()
                if (name, its_rate) == (variant, rate) and (ORIGINAL, rate, seed) in stored
            ]
            if gaps:
                first, early, whole, count = np.max(np.array(gaps)[:, :4], axis=0)
                steps = gaps[-1][4]
                rows.append((variant, rate, len(gaps), int(count), steps, first, early, whole))
    names = ["variant", "lr", "pairs", "steps", "steps_watched", "first", "watched", "whole"]
    return pd.DataFrame(rows, columns=names)


def _gaps(found: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> tuple[Any, ...]:
    """Differences of two losses at the first step, the watched ones and all; how many of both."""
    count = min(len(found["loss"]), len(base["loss"]))
    gap = np.abs(found["loss"][:count] - base["loss"][:count])
    steps = min(len(found["activation"]), count)  # room for more than were taken
    return gap[0], gap[:steps].max(), gap.max(), count, steps


def loss_table(losses: pd.DataFrame) -> tables.Table:
    """The same as a table: tables/loss_difference."""
    headers = {"lr": "lr", "first": "step 1", "watched": "first steps", "whole": "all steps"}
    rate, *others = (tables.scientific(key, header) for key, header in headers.items())
    columns = (tables.text("variant", "mode"), rate, tables.number("pairs", "seeds"), *others)
    steps = f"{int(losses['steps_watched'].max())} steps" if len(losses) else "steps"
    caption = "Largest difference of the training loss to the original's with the same seed (nats)."
    note = f"“First steps”: the first {steps}. Both saw the same batches."
    return tables.Table("loss_difference", losses, columns, caption, note)


def layer_numbers(results: Results, watched: Watched) -> pd.DataFrame:
    """What was recorded of each norm: a row per variant, layer and step, means over seeds and lr.

    Returns:
        variant, place (of the layer, from 1), layer, step (from 1), activation, gradient, weight,
        bias; see `trainables.weight_standardization`.
    """
    frames = []
    for row in results.trials.to_dict("records"):
        found = watched.get(row["trial"], {})
        if "layers" not in found:
            continue
        steps, layers = found["activation"].shape
        step, place = np.meshgrid(np.arange(1, steps + 1), np.arange(1, layers + 1), indexing="ij")
        frame = {"place": place.ravel(), "layer": np.tile(found["layers"], steps)}
        frame |= {name: found[name].ravel() for name in RECORDED}
        frames.append(pd.DataFrame(frame).assign(variant=row["variant"], step=step.ravel()))
    keys = ["variant", "place", "layer", "step"]
    if not frames:
        return pd.DataFrame(columns=[*keys, *RECORDED])
    whole = pd.concat(frames, ignore_index=True).dropna()
    return whole.groupby(keys, sort=False)[[*RECORDED]].mean().reset_index()


def _layer_table(layers: pd.DataFrame) -> tables.Table:
    recorded = (tables.scientific(name, name) for name in RECORDED)
    columns = (
        tables.text("variant", "variant"), tables.text("layer", "norm"),
        tables.number("step", "step"), *recorded,
    )  # fmt: skip
    caption = "What each norm did in the first steps, means over seeds and learning rates."
    return tables.Table("layers", layers, columns, caption)


def check_table(results: Results) -> tables.Table | None:
    """The logits before and after the conversion, from study.json: tables/check."""
    rows = results.data.get("check")
    if not rows:
        return None
    return conversion.output_table(rows, "The study's weights on its first validation images")


@arms.drawn("map", "Curves of mean average precision over epochs for the original and both modes.")
def map_figure(results: Results) -> arms.Drawn:
    """The mAP against the epoch, a panel per learning rate."""
    history = results.history
    shown = [
        (f"lr {tables.significant(rate)}", history[history["lr"] == rate], "val_map")
        for rate in results.levels("lr")
    ]
    drawn = figures.curves(
        shown, "variant", results.levels("variant"), "validation mAP (%)", scale=100.0, height=2.3,
        look=LOOK, label=_name,
    )  # fmt: skip
    return drawn, f"mAP against the epoch. {figures.band_text(history, ['variant', 'lr'])}"


@arms.drawn(
    "step_loss", "Loss curves of mode A drawn over those of the original, and mode B's beside them."
)
def loss_figure(results: Results, watched: Watched) -> arms.Drawn:
    """Training loss of every step, seed by seed: mode A on top of the original."""
    trials = results.trials.to_dict("records")
    rates = results.levels("lr")
    figure, axes = figures.panels(len(rates), height=2.3, sharey=True)
    for panel, rate in zip(axes, rates, strict=True):
        for variant in results.levels("variant"):
            wide = variant == ORIGINAL
            color, width = ("#aaaaaa", 2.6) if wide else (LOOK[variant].color, 0.8)
            mine = [row for row in trials if (row["lr"], row["variant"]) == (rate, variant)]
            found = [watched.get(row["trial"], {}).get("loss") for row in mine]
            for number, losses in enumerate(loss for loss in found if loss is not None):
                name = None if number else _name(variant)
                steps = np.arange(1, len(losses) + 1)
                panel.plot(steps, losses, color=color, linewidth=width, label=name)
        panel.set_title(f"lr {tables.significant(rate)}", loc="left")
        panel.set_xlabel("step")
        panel.set_yscale("log")
    axes[0].set_ylabel("training loss (nats per pair)")
    figures.legend_below(figure, axes[0], len(VARIANTS))
    return figure, (
        "Training loss of every step, a line per seed. Where the thin line of mode A runs inside "
        "the wide grey one, the two losses are the same."
    )


@figures.styled
def mechanism_figure(results: Results, layers: pd.DataFrame) -> Figure:
    """Activation, gradient and norm weight of every layer, first and last watched step."""
    figure, axes = figures.panels(len(PANELS), height=2.6)
    last = int(layers["step"].max())
    for panel, (what, label) in zip(axes, PANELS.items(), strict=True):
        for variant in results.levels("variant"):
            color, mark, _ = LOOK[variant]
            named: dict[str, Any] = {"marker": mark, "label": _name(variant)}
            for step, line, more in ((1, "-", named), (last, ":", {})):
                part = layers[(layers["variant"] == variant) & (layers["step"] == step)]
                part = part[part[what] > 0].sort_values("place")
                width = 2.2 if variant == ORIGINAL else 1.1
                panel.plot(part["place"], part[what], line, color=color, linewidth=width, **more)
        panel.set_yscale("log")
        panel.set_title(label, loc="left")
        figures.whole_numbers(panel, "norm, from the input on")
    figures.legend_below(figure, axes[0], len(VARIANTS))
    caption = (
        f"Every norm in training, at step 1 (solid) and step {last} (dotted); means over seeds and "
        "learning rates, logarithmic."
    )
    alt = (
        "Standard deviation after each norm, gradient norm and norm weight for the three variants."
    )
    return arms.saved(results, figure, "mechanism", caption, alt)


def _name(variant: str) -> str:
    return variant if variant == ORIGINAL else f"mode {variant}"


def _sections(
    results: Results,
    table: tables.Table,
    losses: pd.DataFrame,
    layers: pd.DataFrame,
    checked: tables.Table | None,
    watched: Watched,
) -> list[Section | None]:
    numbers, measured, recorded = table.numbers, [], []
    if any("loss" in found for found in watched.values()):
        measured = [answers.curves(losses), loss_table(losses), loss_figure(results, watched)]
    if len(layers):
        recorded = [answers.mechanism(layers), mechanism_figure(results, layers)]
    rows = pd.DataFrame() if checked is None else pd.DataFrame(results.study["data"]["check"])
    return [
        section(
            "Result",
            answers.summary(results, numbers, losses),
            replace(table, columns=tuple(c for c in table.columns if c.header != "p")),
            answers.flag(results, numbers),
            map_figure(results),
        ),
        section("Formulas", answers.FORMULAS, *EQUATIONS, answers.NEGATIVE),
        section("In evaluation: the same logits", answers.evaluation(rows), checked),
        section("In training: the same loss?", *measured),
        section("What each mode does in training", *recorded),
        section("Limits", answers.limits(results, numbers)),
    ]
