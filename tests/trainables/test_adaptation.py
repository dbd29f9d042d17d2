"""The adaptation trainable in this process, the study on a few images, and its report."""

from __future__ import annotations

import json
import shutil
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis.results.folder import load
from analysis.studies.adaptation import sections
from core.data.synthetic import birds as synthetic_birds
from core.errors import Diverged, UserError
from core.models.normalisation import NORMALISATIONS
from core.models.resnet import resnet
from core.shift.corruptions import CORRUPTIONS
from core.study.plan import plan
from studies.adaptation import study
from tests.support.calls import (
    assert_same_numbers,
    command,
    copied,
    refusal,
    silent,
    table,
    trained,
)
from tests.support.datasets import save, takes_0_to_1
from tests.support.reports import blank_figures, rows_of
from trainables.adaptation import Config, Corruption, adapt_cell, check_cells, data, describe_cells
from trainables.adaptation import cell as scoring

FEW = ["corruption=fog,defocus_blur", "--part", "severity", "--name", "few"]


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Four species of six pictures each."""
    root = tmp_path_factory.mktemp("birds")
    return synthetic_birds.make_birds(root / "set", 4, train_per_class=1, val_per_class=6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network that has learnt nothing, with statistics of its own."""
    torch.manual_seed(0)
    model = resnet(1, 4, "torch_bn")
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def cell(birds, weights):
    """Run one cell; return its row without times."""

    def run(**settings) -> dict:
        small = {"image_size": 32, "batch_size": 8, "num_bn_updates": 3, "wrap": True}
        small |= {"corruption": "fog", "data_dir": str(birds), "checkpoint": str(weights)}
        (row,) = trained(adapt_cell, small | settings)
        return row

    return run


def forget() -> None:
    """Empty what a worker keeps between trials."""
    for kept in (*vars(data).values(), *vars(scoring).values()):
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()


# ---- one cell ----


def test_a_cell_reports_counts_that_agree(cell):
    row = cell(clean_reference=True)
    assert row["n"] == 24 and row["updates"] == 3 and row["epoch"] == 1
    for kind in ("", "clean_"):
        before, after = (row[f"{kind}right_{k}"] for k in ("unadapted", "adapted"))
        assert before + row[f"{kind}gained"] - row[f"{kind}lost"] == after
        assert row[f"{kind}acc_unadapted"] == before / 24
        assert row[f"{kind}acc_adapted"] == after / 24
    assert row["gain"] == row["acc_adapted"] - row["acc_unadapted"]
    assert row["loss_adapted"] != row["loss_unadapted"]


@pytest.mark.parametrize("nothing", [{"num_bn_updates": 0}, {"method": "none"}])
def test_without_adaptation_the_unadapted_result_is_given_exactly(cell, nothing):
    row = cell(**nothing)
    assert row["acc_adapted"] == row["acc_unadapted"] and row["updates"] == 0
    assert row["loss_adapted"] == row["loss_unadapted"]


@pytest.mark.parametrize("method", ["running", "tent"])
def test_a_cell_is_the_same_in_a_new_worker_and_after_any_other(cell, method):
    forget()
    first = cell(method=method)
    for other in ("tent", "running", "batch"):
        cell(method=other, corruption="snow", severity=5, seed=3)
    assert cell(method=method) == first
    forget()
    assert cell(method=method) == first


def test_the_seed_changes_the_order_and_not_the_images(cell):
    one, two = cell(seed=1), cell(seed=2)
    assert one["loss_unadapted"] == two["loss_unadapted"]
    assert one["loss_adapted"] != two["loss_adapted"]
    assert cell(corruption_seed=1)["loss_unadapted"] != one["loss_unadapted"]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_images_corrupted_batch_by_batch_are_those_corrupted_at_once(
    birds, weights, corruption, monkeypatch
):
    places = {"data_dir": str(birds), "checkpoint": str(weights), "image_size": 32}
    cfg = Config(corruption=corruption, severity=4, **places)
    images = data.task_of(cfg).images.images
    whole = scoring.Shifted(cfg, images)
    monkeypatch.setattr(scoring, "_KEPT_BYTES", 0)
    bit = scoring.Shifted(cfg, images)
    assert bit.kept is None
    index = np.array([17, 3, 3, 20])
    assert torch.equal(whole(index), bit(index))
    assert torch.equal(torch.cat([bit(index[:1]), bit(index[1:])]), bit(index))


def test_images_are_taken_evenly_in_the_order_of_their_names(birds, weights):
    cfg = Config(data_dir=str(birds), checkpoint=str(weights), image_size=32, images=10)
    images = data.task_of(cfg).images
    assert images.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    names = [Path(file).name for file in images.files]
    assert names == ["0000.jpg"] * 4 + ["0001.jpg"] * 4 + ["0002.jpg"] * 2


def test_the_setting_knows_the_corruptions_that_there_are():
    assert typing.get_args(Corruption) == ("clean", *CORRUPTIONS)


def test_small_photographs_keep_their_size_and_large_ones_are_cropped(tmp_path, weights):
    for side, expected in ((32, 32), (48, 224)):
        for name in "abcd":
            picture = Image.new("RGB", (side, side), (ord(name), 100, 200))
            save(picture, tmp_path / str(side) / "val" / name / "0.png")
        cfg = Config(data_dir=str(tmp_path / str(side)), checkpoint=str(weights))
        assert data.task_of(cfg).images.images.shape == (4, 3, expected, expected)


def test_scores_that_are_not_finite_end_a_cell_as_diverged(cell, weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    state["head.weight"].fill_(3e38)  # finite, and its products are not
    torch.save(state, tmp_path / "large.pt")
    with pytest.raises(Diverged, match="not finite"):
        cell(checkpoint=str(tmp_path / "large.pt"), normalisation="imagenet")


def test_the_data_are_described_with_the_model(birds, weights):
    settings = {"data_dir": str(birds), "checkpoint": str(weights), "image_size": 32}
    described = describe_cells(settings)
    assert described["kind"] == "folder" and described["bn_layers"] == 7
    assert described["model"] == "ResNet-8" and described["bn_momentum"] == 0.1
    assert str(birds) not in json.dumps(described)
    fewer = describe_cells(settings | {"images": 8})
    assert fewer["fingerprint"] != described["fingerprint"]


# ---- the study ----


def places(birds: Path, weights: Path) -> list:
    """Return the words before those of a test, which may begin with assignments."""
    return ["--data-dir", birds, "--set", f"checkpoint={weights}", "image_size=32", "batch_size=8"]


@pytest.fixture(scope="module")
def severity(birds, weights, tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert command(study, results, *places(birds, weights), *FEW) == 0
    return results / "adaptation" / "few"


def test_the_severity_table_begins_with_clean_images(severity):
    rows = rows_of(severity, "severity")
    assert list(rows[0])[:2] == ["corruption", "severity"]
    told = [(row["corruption"], int(row["severity"])) for row in rows]
    cells = [(name, s) for name in ("fog", "defocus_blur") for s in range(1, 6)]
    assert told == [("clean", 0), *cells]
    trials = table(severity).set_index(["corruption", "severity"])
    for row in rows[1:]:
        trial = trials.loc[(row["corruption"], int(row["severity"]))]
        for key in ("acc_unadapted", "acc_adapted", "gain"):
            assert float(row[key]) == pytest.approx(trial[key], abs=1e-12)
            assert float(row[f"{key}_low"]) <= float(row[f"{key}_high"])
    assert float(rows[0]["acc_adapted"]) == trials["clean_acc_adapted"].iloc[0]
    assert (trials["clean_acc_unadapted"] == float(rows[0]["acc_unadapted"])).all()


def test_only_statistics_changed_and_the_report_says_so(severity):
    trials = table(severity)
    told = "num_batches_tracked 7, running_mean 7, running_var 7"
    assert set(trials["tensors_changed"]) == {told}
    assert "changed nothing but" in (severity / "report.html").read_text()
    moved = sections.layer_changes(load(severity), trials["trial"][0])
    assert len(moved) == 7 and (moved["ratio"] > 0).all()


def test_where_things_are_is_not_recorded(severity, weights):
    record = json.loads((severity / "study.json").read_text())
    assert not {"checkpoint", "data_dir", "frost_dir"} & record["trials"][0]["config"].keys()
    assert str(weights.parent) not in (severity / "report.html").read_text()
    assert str(weights.parent) not in (severity / "trials.csv").read_text()


@pytest.mark.slow
def test_every_part_has_its_table_figure_and_answer(birds, weights, tmp_path):
    words = ["corruption=fog", "severity=2", "num_bn_updates=1,4", "--wrap", "--name", "whole"]
    with blank_figures():
        assert command(study, tmp_path, *places(birds, weights), *words) == 0
    whole = tmp_path / "adaptation" / "whole"
    tables = {file.stem for file in (whole / "tables").iterdir()}
    expected = {"severity", "corruptions", "updates", "batch_size", "methods", "clean", "stream"}
    assert expected <= tables
    figures = {file.stem for file in (whole / "figures").glob("*.png")}
    assert {"updates", "batch_size", "methods", "stream", "statistics", "photos"} <= figures
    page = (whole / "report.html").read_text()
    for question in (
        "What do more updates bring?",
        "What does the batch size do?",
        "What does it cost on clean images?",
        "Does the order of the images matter?",
        "How do the methods compare?",
    ):
        assert question in page
    assert "those reported" in page  # computed again from the stored scores
    assert (whole / "report.pdf").read_bytes().startswith(b"%PDF")


ALONE = {
    "clean": ["method=none,batch"],
    "severity": ["corruption=frost", "severity=2"],  # the lab's own cell
    "updates": ["num_bn_updates=1,3"],
    "batch-size": ["batch_size=1,8", "num_bn_updates=3"],
    "methods": ["corruption=fog,snow", "method=none,running", "num_bn_updates=3"],
    "stream": ["order=shuffled,sorted", "num_bn_updates=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("part", ALONE)
def test_a_part_alone_gives_a_report(birds, weights, tmp_path, part):
    words = [*ALONE[part], "--part", part, "--wrap", "--name", "alone"]
    with blank_figures():
        assert command(study, tmp_path, *places(birds, weights), *words) == 0
    folder = tmp_path / "adaptation" / "alone"
    trials = table(folder)
    assert set(trials["part"]) == {part} and set(trials["state"]) == {"finished"}
    assert (folder / "report.html").is_file() and rows_of(folder, part.replace("-", "_"))
    assert set(ALONE) == set(study.parts)


@pytest.mark.slow
def test_what_a_part_compares_beside_its_question_is_told_apart_and_not_averaged(
    birds, weights, tmp_path
):
    for part, words, by in (
        ("updates", ["num_bn_updates=1,3", "batch_size=4,8"], ["num_bn_updates", "batch_size"]),
        ("severity", ["corruption=fog", "severity=1,2", "method=running,batch", "seed=0,1"],
         ["severity", "method"]),
    ):  # fmt: skip
        words = [*words, "--part", part, "--wrap", "--name", part]
        with blank_figures():
            assert command(study, tmp_path, *places(birds, weights), *words) == 0
        folder = tmp_path / "adaptation" / part
        rows = [row for row in rows_of(folder, part) if row["corruption"] != "clean"]
        expected = table(folder).groupby(by)["acc_adapted"].mean()
        assert len(rows) == len(expected)
        shown = "mean" if part == "updates" else "acc_adapted"
        for row in rows:
            key = tuple(type(k)(row[name]) for name, k in zip(by, expected.index[0], strict=True))
            assert float(row[shown]) == pytest.approx(expected[key])


def test_one_value_of_the_user_holds_for_every_part():
    settings = {"corruption": ["fog"], "severity": [2], "num_bn_updates": [1, 4]}
    trials = plan(study, "demo", None, None, settings).trials
    assert {p.config["num_bn_updates"] for p in trials if p.part == "updates"} == {1, 4}
    assert {p.config["corruption"] for p in trials if p.part == "clean"} == {"clean"}
    only = plan(study, "demo", "severity", None, {"method": ["batch"], "severity": [3]})
    assert {p.config["method"] for p in only.trials} == {"batch"} and len(only.trials) == 8


def test_a_resumed_study_is_the_unbroken_one(severity, birds, weights, tmp_path):
    again = tmp_path / "adaptation" / "few"
    shutil.copytree(severity, again)
    for trial in table(severity)["trial"][3:6]:
        shutil.rmtree(again / "trials" / trial)
    forget()
    assert command(silent(study), tmp_path, *places(birds, weights), *FEW, "--resume") == 0
    assert_same_numbers(severity, again, "memory", "allocated")


def test_the_normalisation_is_settled_once_and_recorded(
    severity, birds, weights, tmp_path, monkeypatch
):
    record = json.loads((severity / "study.json").read_text())
    settled = record["data"]["normalisation"]
    assert settled["how"] == "guessed" and set(settled["accuracy"]) == set(NORMALISATIONS)
    assert settled["accuracy"][settled["name"]] == max(settled["accuracy"].values())
    assert {t["config"]["normalisation"] for t in record["trials"]} == {settled["name"]}
    page = (severity / "report.html").read_text()
    assert all(f"{name} {100 * value:.1f}" in page for name, value in settled["accuracy"].items())
    clean = table(severity)["clean_acc_unadapted"]
    assert set(clean) == {settled["accuracy"][settled["name"]]}
    # a resumed study takes what was settled, whatever would be guessed now; and says so if set
    other = next(name for name in NORMALISATIONS if name != settled["name"])
    guess = data.settle
    monkeypatch.setattr(data, "settle", lambda *a: guess(*a[:3], other, None))
    forget()
    again, words = tmp_path / "adaptation" / "few", [*places(birds, weights), *FEW, "--resume"]
    shutil.copytree(severity, again)
    assert command(silent(study), tmp_path, *words) == 0
    assert json.loads((again / "study.json").read_text())["trials"] == record["trials"]
    told = refusal(study, tmp_path, *words, "--set", f"normalisation={other}")
    assert f"normalisation: {settled['name']} -> {other}" in told


def test_other_weights_are_not_resumed(severity, birds, tmp_path):
    other = tmp_path / "other.pt"
    torch.save(resnet(1, 4, "torch_bn").state_dict(), other)
    told = refusal(study, severity.parents[1], *places(birds, other), *FEW, "--resume")
    assert "has changed" in told


def test_a_copied_folder_gives_the_same_report_without_images(severity, tmp_path):
    folder, again = copied(severity, tmp_path, "figures"), ("--name", "few", "--report-only")
    assert command(study, tmp_path, *again) == 0
    assert rows_of(folder, "severity") == rows_of(severity, "severity")
    shutil.rmtree(folder / "figures")
    assert command(study, tmp_path, *again) == 0
    assert "photographs is left out" in (folder / "report.html").read_text()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["corruption=rain"], "fog"), (["severity=0"], "give 1, 2, 3, 4 or 5"),
        (["severity=6"], "give 1, 2, 3, 4 or 5"), (["num_bn_updates=50"], "--wrap"),
        (["batch_size=25"], "1 to 24"), (["images=3"], "one for each class"),
        (["images=25"], "(all)"), (["image_size=16"], "at least 32"), (["momentum=2"], "momentum"),
        (["checkpoint=nowhere.pt"], "no such file"), (["frost_dir=nowhere"], "frost_dir"),
        (["method=magic"], "running"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_2(birds, weights, tmp_path, words, sentence):
    told = refusal(study, tmp_path, *places(birds, weights), *words, "--part", "severity")
    assert sentence in told and not list(tmp_path.rglob("study.json"))


@pytest.mark.parametrize("kind", ["not finite", "no batch-norm layer"])
def test_weights_that_cannot_be_adapted_are_refused_before_any_work(birds, weights, tmp_path, kind):
    state = torch.load(weights, weights_only=True)
    state["conv.weight"][0, 0, 0, 0] = torch.nan
    other = state if kind == "not finite" else resnet(1, 4, "gn").state_dict()
    torch.save(other, tmp_path / "bad.pt")
    assert kind in refusal(study, tmp_path, *places(birds, tmp_path / "bad.pt"))
    assert not list(tmp_path.rglob("study.json"))


def test_the_embedded_model_is_not_tried_on_other_data(birds):
    with pytest.raises(UserError, match=r"embedded birds only.*checkpoint="):
        describe_cells({"data_dir": str(birds)})


def test_the_labs_own_updates_wrap_and_the_users_do_only_with_wrap(birds, weights):
    described = {"counts": {"val": {"a": 24}}}
    labs = plan(study, "full", "severity", None, {"batch_size": [8]})
    check_cells([p.config for p in labs.trials], described)
    given = {"batch_size": [8], "num_bn_updates": [50]}
    asked = given | study.settings.adjust(given, "full")  # pyrefly: ignore
    with pytest.raises(UserError, match=r"num_bn_updates=50.*at most 3, or --wrap"):
        check_cells([p.config for p in plan(study, "full", None, None, asked).trials], described)


@pytest.mark.parametrize("scale", ["demo", "smoke"])
def test_the_embedded_images_are_enough_for_every_part(scale):
    count = study.scales[scale].settings["images"]
    described = {"counts": {"val": {"a": count}}}
    check_cells([p.config for p in plan(study, scale, None, None, {}).trials], described)


def test_images_that_are_too_small_are_named(tmp_path, weights):
    for name in "abcd":
        save(Image.new("RGB", (20, 40)), tmp_path / "val" / name / "0.png")
    with pytest.raises(UserError, match=r"val/a/0\.png has 20x40 pixels"):
        describe_cells({"data_dir": str(tmp_path), "checkpoint": str(weights)})


def test_a_damaged_folder_of_python_batches_is_refused(tmp_path, weights):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cifar-10-batches-py is not whole"):
        describe_cells({"data_dir": str(tmp_path), "checkpoint": str(weights)})


# ---- real photographs and public weights ----


@pytest.mark.slow
def test_foreign_weights_get_the_pixels_that_they_expect(shared_data, tmp_path):
    weights, public = takes_0_to_1(shared_data, tmp_path)
    settings = {"data_dir": str(shared_data / "cifar10"), "checkpoint": weights, "images": 500}
    described = describe_cells(settings)
    told = described["normalisation"]["accuracy"]
    assert described["settled"] == {"normalisation": "none"}
    assert told == {"imagenet": 0.176, "cifar10": 0.192, "none": 0.794}
    clean = {"corruption": "clean", "severity": 0, "method": "none", "normalisation": "none"}
    assert trained(adapt_cell, settings | clean)[0]["acc_unadapted"] == 0.794
    known = describe_cells(settings | {"checkpoint": public})
    assert known["normalisation"]["how"] == "known"


@pytest.mark.slow
def test_public_weights_on_real_photos_score_as_the_reference_says(shared_data):
    reference = pd.read_csv(shared_data.parent / "reference" / "adaptation.csv")
    cells = reference[(reference["kind"] == "cell") & (reference["n_images"] == 2000)]
    expected = cells.set_index(["corruption", "severity"])
    settings = {"images": 500, "wrap": True, "data_dir": str(shared_data / "cifar10")}
    settings["checkpoint"] = str(shared_data / "weights" / "cifar10-resnet20.th")
    settings["frost_dir"] = str(shared_data / "frost")
    for corruption, severity in (("defocus_blur", 5), ("frost", 3)):
        cell = {"corruption": corruption, "severity": severity}
        (row,), known = trained(adapt_cell, settings | cell), expected.loc[(corruption, severity)]
        for name in ("acc_unadapted", "acc_adapted"):
            # 500 of the reference's 2,000 photos: two standard errors of the rest are 4 points
            assert 100 * row[name] == pytest.approx(known[name], abs=5)
    assert 0.75 < row["clean_acc_unadapted"] < 0.88
    # the known collapse: batches of one class
    for order, low, high in (("shuffled", 0.5, 0.8), ("sorted", 0.0, 0.5)):
        cell = {"corruption": "frost", "severity": 3, "method": "batch", "order": order}
        (row,) = trained(adapt_cell, settings | cell | {"batch_size": 50})
        assert low < row["acc_adapted"] < high
