"""The table of a check: a network before and after its conversion, image by image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.document import arms, tables

OUTPUT = "output"
NONE = (
    "“None”: the weights are standardised and the norms left alone. “Relative”: largest difference "
    "over the largest logit."
)


def check(settings: Mapping[str, Any], folder: Path) -> int:
    """Compare logits and layers of a network before and after its conversion, on images.

    Writes `folder`/check/, prints both tables and returns the exit code.

    Args:
        settings: see `core.models.conversion_check.run`.
        folder: the study's result folder; need not exist.
    """
    from core.models import conversion_check  # brings torch

    found = conversion_check.run(settings)
    subject = f"{found['weights']}; {found['images']}, {found['image_size']} pixels"
    rows = pd.DataFrame(found["rows"])
    for table in (layer_table(rows, subject), output_table(found["rows"], subject)):
        tables.write(table, folder / "check")
        tables.print_table(table)
    print(found["normalisation"])
    print(f"Written to {folder / 'check'}")
    return 0


def output_table(rows: Sequence[Mapping[str, Any]], subject: str) -> tables.Table:
    """The logits: tables/check, a row per precision and mode."""
    numbers = pd.DataFrame([row for row in rows if row["layer"] == OUTPUT])
    numbers["relative"] = numbers["largest"] / numbers["size"]
    numbers["same"] = 1 - numbers["changed"].astype(float) / numbers["images"]
    for name in ("accuracy", "accuracy_converted"):
        numbers[name] = numbers[name].astype(float)
    columns = [
        *arms.texts("mode", "precision"),
        _magnitude("mae", "MAE"),
        *(_magnitude(name, name) for name in ("largest", "relative")),
        *arms.shares(2, same="same top-1"),
        *arms.numbers(changed="changed"),
    ]
    if numbers["accuracy"].notna().any():
        columns += arms.shares(2, accuracy="accuracy", accuracy_converted="after")
    return tables.Table(
        "check",
        numbers,
        tuple(columns),
        "Logits of the converted network against the original's, in evaluation mode.",
        f"{subject}. MAE: mean absolute difference. {NONE} “Changed”: images whose top class is "
        "another one.",
    )


def layer_table(rows: pd.DataFrame, subject: str) -> tables.Table:
    """Largest difference after each norm, as a share of the largest value there."""
    rows = rows.assign(share=rows["largest"] / rows["size"].where(rows["size"] > 0, 1.0))
    rows["column"] = rows["mode"] + ", " + rows["precision"].str.replace("float", "f")
    order = list(dict.fromkeys(rows["column"]))
    wide = rows.pivot(index="layer", columns="column", values="share")
    wide = wide.reindex(index=list(dict.fromkeys(rows["layer"])), columns=order).reset_index()
    return tables.Table(
        "check_layers",
        wide,
        (tables.text("layer", "after"), *(_magnitude(name, name) for name in order)),
        "Largest difference after each norm, as a share of the largest value there.",
        f"{subject}. f32, f64: float32, float64. {NONE.split('. ')[0]}.",
    )


def _magnitude(key: str, header: str) -> tables.Column:
    """A column of numbers over many magnitudes; large ones with an exponent, too."""

    def cell(row: Mapping[Any, Any]) -> str:
        value = float(row[key])
        if value >= 1e4:
            mantissa, exponent = f"{value:.1e}".split("e")
            return f"{mantissa}e{int(exponent)}"
        return tables.significant(value)

    return tables.Column(header, cell)
