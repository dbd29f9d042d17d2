"""The report of the generation study, from folders whose numbers follow a formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis import generation_samples
from analysis.results.folder import load
from analysis.results.statistics import t_interval
from analysis.studies.generation import answers, sections
from analysis.studies.generation.figures import canvas
from analysis.studies.generation.samples import load_stored
from core.errors import UserError
from tests.support import results as built
from tests.support.reports import assert_whole, rows_of, told, words_of

CLASSES = ("cat", "dog", "fo*x")
SIZE, COUNT = 8, 30
BASE = {"vae": 0.3, "dcgan": 0.25, "flow": 0.2}


def distance(family: str, width: int, seed: int) -> float:
    swing = {"vae": 0.002, "dcgan": -0.002, "flow": 0.0}[family]  # equal seeds have no interval
    return BASE[family] - width / 400 + 0.01 * seed + swing * (seed - 1)


def trial_row(family: str, width: int, seed: int) -> dict:
    return {
        "trial": f"family={family},width={width},seed={seed}", "part": "small",
        "state": "finished", "error": "", "family": family, "width": width, "seed": seed,
        "samples": 0, "epochs_run": 2, "seconds": 10.0, "seconds_per_epoch": 5.0 + width / 16,
        "sample_seconds": 1.0, "peak_memory_mib": 50.0 + seed, "parameters": 1000 * width,
        "frechet": distance(family, width, seed), "precision": 0.5, "density": 0.9,
        "recall": 0.4 if family == "dcgan" else 0.8 + 0.01 * seed, "coverage": 0.7,
        "class_agreement": 2 / 3, "class_balance": 1.0, "nearest_distance": 30.0,
        "nearest_ratio": 0.8, "copies": 0.0,
    }  # fmt: skip


def arrays(row: dict) -> dict:
    generator = np.random.default_rng(row["seed"] + len(row["family"]))

    def images(*shape: int) -> np.ndarray:
        return generator.integers(0, 256, (*shape, 1, SIZE, SIZE), dtype=np.uint8)

    labels = np.arange(COUNT) % 3
    taken = np.where(labels == 2, 2, 1 - labels)  # two classes swapped, the third right
    taken = np.where(np.arange(COUNT) % 6 < 3, labels, taken)  # and only half of the time
    return {
        "scores": np.eye(3, dtype=np.float32)[taken], "labels": labels, "classes": CLASSES,
        "files": [f"sample-{i}" for i in range(COUNT)], "samples": images(COUNT),
        "grids": images(2, 12), "grid_labels": np.arange(12) % 3, "real": images(12),
        "nearest_distance": generator.random(COUNT) * 40, "pairs": np.arange(5),
        "nearest_ratio": generator.random(COUNT), "pair_images": images(5),
        "held_out_distance": generator.random(20) * 40, "held_out_pairs": np.arange(5),
        "held_out_ratio": generator.random(20), "held_out_images": images(5),
        "held_out_nearest": images(5), "interpolation": images(2, 4), "trajectory": images(3, 2),
        "trajectory_times": np.array([0.0, 0.5, 1.0]),
    }  # fmt: skip


def features(row: dict) -> dict:
    """Features whose distance can be computed by hand: means apart, covariances equal."""
    generator = np.random.default_rng(5)
    real = generator.normal(size=(COUNT, 4)).astype(np.float32)
    return {
        "features": real + np.float32(row["frechet"] ** 0.5 / 2),
        "real_features": real,
        "real_mean": real.astype(float).mean(0),
        "real_covariance": np.cov(real.astype(float), rowvar=False),
    }


def build(
    folder: Path, seeds: int = 3, change=lambda row: row, predictions: bool = True,
    extra=lambda row: {},
) -> Path:  # fmt: skip
    """Write a result folder of 3 families, 2 widths and some seeds."""
    rows = [
        change(trial_row(family, width, seed))
        for family in BASE for width in (16, 32) for seed in range(seeds)
    ]  # fmt: skip
    fixed = {"conditional": True, "ema": 0.9, "neighbours": 5, "sampler": "heun",
             "sampler_steps": 2, "lr": None, "latent": None, "patch": 2, "guidance": 1.0,
             "label_dropout": 0.1, "samples": 0}  # fmt: skip
    configs = [{k: row[k] for k in ("family", "width", "seed")} | fixed for row in rows]
    measures = {"precision": 0.8, "recall": 0.9, "density": 1.0, "coverage": 0.9,
                "nearest_distance": 25.0, "nearest_ratio": 0.7}  # fmt: skip
    yardsticks = {
        name: {"frechet": frechet, "copies": copies} | measures
        for name, frechet, copies in (("held_out", 0.02, 0.05), ("copies", 0.01, 1.0),
                                      ("noise", 1.0, 0.0))
    }  # fmt: skip
    data = {
        "kind": "folder", "classes": list(CLASSES), "channels": 1, "image_size": SIZE,
        "counts": {"train": dict.fromkeys(CLASSES, 20), "val": dict.fromkeys(CLASSES, 10)},
        "compared": COUNT, "yardsticks": yardsticks,
        "classifier": {"digest": "x", "features": 64, "held_out_accuracy": 0.9},
    }  # fmt: skip
    planned = [
        {"trial": row["trial"], "part": "small", "config": config}
        for row, config in zip(rows, configs, strict=True)
    ]
    grid = {"family": list(BASE), "width": [16, 32], "seed": list(range(seeds))}
    more = {"grid": grid, "metric": "frechet", "mode": "min", "constants": fixed, "data": data}
    study = built.declare("generation", "Which makes the best images?", planned, **more)
    history = [
        {"trial": row["trial"], "epoch": epoch, "frechet": row["frechet"] * 2 / epoch,
         "coverage": row["coverage"] * epoch / 2}
        for row in rows for epoch in (1, 2)
    ]  # fmt: skip
    stored = {
        row["trial"]: {"config": config, **arrays(row), **extra(row)}
        for row, config in zip(rows, configs, strict=True)
    }
    return built.write(folder, study, rows, history, predictions=stored if predictions else None)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    folder = build(tmp_path_factory.mktemp("generation") / "full")
    sections.report(folder)
    return folder


def answers_of(folder: Path) -> str:
    """The sentences that compare families, without the report around them."""
    results = load(folder)
    numbers, known = sections.generation_numbers(results), sections.yardsticks(results)
    told = answers.summary, answers.questions, answers.copied
    return " ".join(sentence(results, numbers, known) for sentence in told)


def test_everything_is_written(full):
    drawn = "samples progress curves neighbours distances interpolation trajectory"
    assert_whole(full, "generation neighbours generation_by_seed", drawn, equations=1)


def test_the_main_table_follows_the_formula(full):
    rows = rows_of(full, "generation")
    means = [float(row["frechet"]) for row in rows[:6]]
    assert means == sorted(means) and rows[0]["family"] == "flow" and rows[0]["width"] == "32.0"
    for row in rows[:6]:
        width = int(float(row["width"]))
        expected = t_interval([distance(row["family"], width, seed) for seed in range(3)])
        for column, value in (("frechet", expected.mean), ("frechet_low", expected.low)):
            assert float(row[column]) == pytest.approx(value, rel=1e-12)
        assert float(row["share"]) == pytest.approx(expected.mean / 1.0)
        assert float(row["peak_memory_mib"]) == 52 and float(row["n"]) == 3
    assert [row["what"] for row in rows[6:]] == list(sections.YARDSTICKS.values())


def test_the_sentences_say_what_the_numbers_do(full):
    words = words_of(full)
    assert "flow matching of width 32 0.130" in words and "is not FID" in words
    assert "is below a quarter of the ceiling" in words
    assert "no sign of copying" in words and "does not see mirrored" in words
    assert "DCGAN of width 32 shows the least of the variety" in words
    assert "Flow matching of width 32: the smallest mean is 0.130" in words
    assert "flow matching −0.040" in words  # from width 16 to 32


def test_bad_samples_and_copies_are_told(tmp_path):
    def worse(row: dict) -> dict:
        return row | {"frechet": row["frechet"] + 0.5, "copies": 0.3 + 0.01 * row["seed"]}

    words = answers_of(build(tmp_path / "bad", change=worse, predictions=False))
    assert "not below" in words and "may copy" in words and "no sign" not in words


def test_one_seed_or_overlap_names_no_winner_and_no_copier(tmp_path):
    copied = {"change": lambda row: row | {"copies": 0.3}, "predictions": False}
    words = answers_of(build(tmp_path / "one", seeds=1, **copied))
    assert "[no interval]" in words and "cannot be told without an interval" in words
    assert "Without an interval over seeds there is no verdict" in words and "may copy" not in words
    assert "The two lowest cannot be told apart" in words

    def even(row: dict) -> dict:
        swing = {"vae": 0.0, "dcgan": 0.02, "flow": -0.03}[row["family"]] * (row["seed"] - 1)
        return row | {"frechet": 0.2 + swing, "recall": 0.5 + swing}

    words = answers_of(build(tmp_path / "even", change=even, predictions=False))
    assert "The first two cannot be told apart" in words
    assert "The two lowest cannot be told apart" in words and "shows the least" not in words


def test_measures_come_from_stored_features_and_changed_ones_are_told(tmp_path):
    folder = build(tmp_path / "features", seeds=2, extra=features)
    results, checked = sections.recompute(load(folder))
    assert checked.features == 12
    for row in results.trials.to_dict("records"):
        wanted = distance(row["family"], row["width"], row["seed"])
        assert row["frechet"] == pytest.approx(wanted, rel=1e-5)
        assert row["precision"] != 0.5  # the reported one: made up
    assert checked.worst["frechet"][0] < 1e-6 < checked.worst["precision"][0]
    words = answers.stored_measures(checked)
    assert "from the stored features of 12 trials" in words
    assert "precision of family" in words and "is not what the trial reported" in words
    assert "frechet of family" not in words


def test_scores_that_do_not_belong_to_the_measures_are_told(tmp_path):
    def other(row: dict) -> dict:  # one trial's scores name one class for every image
        one = np.eye(3, dtype=np.float32)[np.zeros(COUNT, int)]
        return {"scores": one} if (row["family"], row["width"]) == ("vae", 16) else {}

    folder = build(tmp_path / "scores", seeds=1, extra=other)
    results, checked = sections.recompute(load(folder))
    assert (checked.features, checked.scores, checked.images) == (0, 6, 0)
    name = "family=vae,width=16,seed=0"
    row = results.trials.set_index("trial").loc[name]
    assert row["class_agreement"] == pytest.approx(1 / 3) and row["class_balance"] == 0
    assert checked.worst["class_agreement"] == (pytest.approx(1 / 3), name)
    words = answers.stored_measures(checked)
    assert "from the stored scores of 6 trials" in words
    assert f"class agreement of {name} is not what the trial reported" in words
    assert "As the trials reported them: Fréchet distance" in words


def test_a_study_without_predictions_still_reports(tmp_path):
    words = told(sections.report, build(tmp_path / "bare", predictions=False))
    assert "flow matching of width 32" in words
    assert not (tmp_path / "bare" / "figures" / "samples.svg").exists()


def test_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path):
    folder = build(tmp_path / "damaged", seeds=1)
    name = "family=vae,width=16,seed=0"
    file = folder / "predictions" / f"{name}.npz"
    np.savez(tmp_path / "pickled.npz", samples=np.array([object()], dtype=object))
    for content in (file.read_bytes()[:1000], (tmp_path / "pickled.npz").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            load_stored(folder, name)


def test_samples_of_an_unfinished_study_are_refused(tmp_path, capsys):
    folder = build(tmp_path / "early", seeds=1)
    assert generation_samples.main(folder, 3) == 2
    assert generation_samples.main(folder, 0) == 2
    assert generation_samples.main(tmp_path / "nowhere", 3) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3 and "no best trial yet" in errors[0]
    (folder / "checkpoints").mkdir()
    best = json.loads((folder / "study.json").read_text())["trials"][0]
    best |= {"epoch": 2, "frechet": 0.1}
    (folder / "checkpoints" / "best.json").write_text(json.dumps(best))
    (folder / "checkpoints" / "best.pt").write_bytes(b"damaged")
    assert generation_samples.main(folder, 3) == 2
    assert "best.pt" in capsys.readouterr().err


def test_a_canvas_puts_images_in_rows():
    images = np.stack([np.full((1, 8, 8), value, np.uint8) for value in (10, 20, 30)])
    sheet = canvas(images, 2)
    scale = 8  # enlarged to 64 pixels each
    assert sheet.shape == ((8 + 1 + 8) * scale, (8 + 1 + 8) * scale, 3)
    assert sheet[0, 0, 0] == 10 and sheet[0, 9 * scale, 0] == 20 and sheet[9 * scale, 0, 0] == 30
    assert sheet[0, 8 * scale, 0] == 255 and sheet[-1, -1, 0] == 255
