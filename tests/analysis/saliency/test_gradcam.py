"""Grad-CAM maps against autograd, and the page of a small trained network."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis import gradcam
from analysis.document import figures
from analysis.document import report as reports
from analysis.results.folder import load, load_predictions
from analysis.saliency import maps as gradcam_maps
from analysis.saliency import page as gradcam_page
from analysis.saliency import study as gradcam_study
from core.data import images
from core.data.batches import Batches
from core.data.synthetic import birds
from core.errors import UserError
from core.models.resnet import load_weights, resnet
from core.training.epoch import cross_entropy, evaluate
from studies.norms import study
from tests.analysis.saliency.test_maps import by_autograd
from tests.support.calls import command
from tests.support.reports import assert_self_contained, blank_figures, rows_of
from tests.support.results import edited

SEVEN = [
    "Cattle Egret", "Coppersmith Barbet", "Indian Peacock", "Red-Wattled Lapwing", "Ruddy Shelduck",
    "White-Breasted Kingfisher", "White-Breasted Waterhen",
]  # fmt: skip


def norms(results: Path, *settings: str, report=lambda folder: None) -> Path:
    """Run the norms study with one trial, with or without a report; return its result folder."""
    given = ["--seeds", "1", "--name", "one", "--set", *settings]
    assert command(replace(study, report=report), results, *given) == 0
    return results / "norms" / "one"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A study of one network that knows most of the embedded birds (some seconds)."""
    settings = ["norm=torch_bn", "n=1", "image_size=20", "epochs=2", "lr=0.2", "val_images=250"]
    return norms(tmp_path_factory.mktemp("trained"), *settings)


@pytest.fixture(scope="module")
def drawn(trained) -> Path:
    """The same, with its Grad-CAM page, whose figures are blank."""
    with blank():
        assert gradcam.main([str(trained)]) == 0
    return trained


@pytest.fixture(scope="module")
def found(drawn) -> gradcam_page.Maps:
    kept = gradcam_page.restore(drawn)
    assert kept is not None
    return kept


@pytest.fixture
def copied(drawn, tmp_path) -> Path:
    """A copy of the study to damage, without its page."""
    folder = tmp_path / "one"
    shutil.copytree(drawn, folder, ignore=shutil.ignore_patterns("gradcam*", "trials"))
    return folder


@contextlib.contextmanager
def blank():
    """Have every figure saved as an empty one, those of a class with nothing drawn on them."""
    with blank_figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradcam_page, "class_figure", lambda *_: figures.panels()[0])
        yield


def network(path: Path):
    best = json.loads((path / "checkpoints" / "best.json").read_text())
    model = resnet(best["config"]["n"], 25, best["config"]["norm"])
    return load_weights(model, path / "checkpoints" / "best.pt").eval()


def validation(path: Path) -> images.ImageSet:
    return images.load(birds.default_birds(), 20, ("val",), limit={"val": 250})["val"]


# ---- picks ----


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two classes: twenty right and three wrong images of one, four right ones of the other."""
    rng = np.random.default_rng(1)
    rows = [(0, 0, f"val/a/{i:02}.jpg") for i in range(20)]
    rows += [(0, 1, f"val/a/x{i}.jpg") for i in range(3)]
    rows += [(1, 1, f"val/b/{i}.jpg") for i in range(4)]
    frame = pd.DataFrame(rows, columns=["label", "predicted", "file"])
    return frame.assign(
        right=frame["label"] == frame["predicted"],
        predicted_probability=rng.random(len(frame)).round(1),
    )


def test_the_most_confident_come_first_and_ties_go_by_name(frame):
    chosen = gradcam_study.choose(frame).query("place >= 0").sort_values("place")
    right = frame[frame["right"] & (frame["label"] == 0)]
    expected = right.sort_values(["predicted_probability", "file"], ascending=[False, True])
    assert list(chosen["file"][:5]) == list(expected["file"][:5])
    assert list(chosen["place"]) == list(range(5 + 3 + 4))
    assert not chosen["right"][5:8].any() and chosen["right"][8:].all()
    mixed = frame.sample(frac=1, random_state=0).reset_index(drop=True)
    again = gradcam_study.choose(mixed).query("place >= 0").sort_values("place")
    by_class = [sorted(again["file"][again["label"] == k]) for k in (0, 1)]
    assert by_class == [sorted(chosen["file"][chosen["label"] == k]) for k in (0, 1)]


def test_random_picks_go_by_the_seed(frame):
    def files(seed, rows=frame):
        chosen = gradcam_study.choose(rows, "random", seed).query("place >= 0")
        return list(chosen.sort_values("place").file)

    assert files(0) == files(0)
    assert files(0) != files(1)
    alone = frame[frame["label"] == 1].reset_index(drop=True)
    assert files(0, alone) == [file for file in files(0) if "/b/" in file]


# ---- the page of a trained network ----


def test_scores_are_those_of_the_study(trained, found):
    """Probabilities and predictions are those of best.pt, and of the stored scores of its epoch."""
    best = json.loads((trained / "checkpoints" / "best.json").read_text())
    assert found.about["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-12)
    assert found.about["recorded"] == pytest.approx(best["val_accuracy"], abs=1e-12)
    val = validation(trained)
    batches = Batches(val, 32, torch.device("cpu"))
    _, scores = evaluate(network(trained), batches.epoch(0), cross_entropy(25))
    p = dict(zip(val.files, scores.softmax(1).numpy(), strict=True))
    for row in found.images.itertuples():
        assert p[row.file].argmax() == row.predicted
        assert p[row.file][row.label] == pytest.approx(row.true_probability, abs=1e-5)
        assert p[row.file].max() == pytest.approx(row.predicted_probability, abs=1e-5)
        assert row.right == (row.predicted == row.label)
    stored = load_predictions(trained, best["trial"])
    assert stored.epoch == best["epoch"]
    np.testing.assert_allclose(stored.scores, scores.numpy(), atol=1e-4)
    assert found.about["difference"] < 1e-5
    changed = found.about | {"recorded": 0.1}
    assert "images or code have changed" not in gradcam_page._checked(found.about)
    assert "images or code have changed" in gradcam_page._checked(changed)


def test_the_maps_lie_on_the_birds_and_beat_random_ones(found):
    """The mass on the bird exceeds the bird's share of the image, with a margin."""
    right = found.images[found.images["right"]]
    assert len(right) > 0.6 * len(found.images)
    assert right["inside"].mean() > 1.3 * right["area"].mean()
    for label in found.chosen:
        one = right[right["label"] == label]
        assert one["inside"].mean() > one["area"].mean()
    shown = found.images[found.images["place"] >= 0]
    assert shown["deletion"].mean() < shown["random_deletion"].mean() - 0.1
    assert shown["insertion"].mean() > shown["random_insertion"].mean() + 0.1


def test_stored_maps_and_table_are_computed_again(drawn, found):
    shown = found.images[found.images["place"] >= 0].sort_values("place")
    assert len(shown) == len(found.maps) == len(found.pictures)
    root, model, val = birds.default_birds(), network(drawn), validation(drawn)
    place = {file: number for number, file in enumerate(val.files)}
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    for row in shown.itertuples():
        picture = np.array(val.images[place[row.file]])
        np.testing.assert_array_equal(found.pictures[row.place], picture)
        x = (torch.from_numpy(picture)[None] / 255 - mean) / std
        own = gradcam_maps.aggregate(np.stack(by_autograd(model, x, [row.label])))[0]
        np.testing.assert_allclose(found.maps[row.place], own, atol=1e-4)
        mask = Image.open(root / "masks" / Path(row.file).with_suffix(".png")).convert("L")
        cover = np.asarray(mask.resize((20, 20), Image.Resampling.BILINEAR)) / 255
        heat = gradcam_page.enlarge(own[None], 20)[0]
        assert (heat * cover).sum() / heat.sum() == pytest.approx(row.inside, abs=1e-4)
        assert cover.mean() == pytest.approx(row.area, abs=1e-9)
    rows = {(row["class"], row["images"]): row for row in rows_of(drawn, "gradcam")}
    assert len(rows) == 2 * 8
    for label in found.chosen:
        for right in (True, False):
            group = found.images.query("label == @label and right == @right")
            row = rows[found.classes[label], "right" if right else "wrong"]
            assert int(row["n"]) == len(group)
            assert int(row["shown"]) == min(5, len(group))
            for name in ("inside", "area", "half", "true_probability"):
                if len(group):
                    assert float(row[name]) == pytest.approx(group[name].mean(), abs=1e-12)
    assert int(rows["all of these", "right"]["n"]) == found.images["right"].sum()


def test_the_page_is_whole_and_shows_the_labs_classes(drawn, found):
    assert [found.classes[label] for label in found.chosen] == SEVEN
    for kind in ("csv", "md", "tex"):
        for name in ("gradcam", "gradcam_images"):
            assert (drawn / "tables" / f"{name}.{kind}").is_file()
    html = (drawn / "gradcam.html").read_text()
    page = assert_self_contained(html)
    assert len(page.named("svg")) == len(found.chosen)
    assert "Synthetic data" in html and "mean colour of the normalisation" in html
    assert str(drawn) not in html
    pages = reports.page_count((drawn / "gradcam.pdf").read_bytes())
    assert 2 < pages <= 4 + len(found.chosen)


def test_fewer_than_five_wrong_images_are_said(found):
    """Every class of the page whose network made fewer than five mistakes says how many."""
    few = [k for k in found.chosen if len(found.group(k, False)) < 5]
    assert few, "the trained network should know some class well"
    for label in few:
        count = len(found.group(label, False))
        text = gradcam_page.class_text(found, label)
        known = {0: "No image is wrong", 1: "Only 1 is wrong"}
        amount = known.get(count, f"Only {count} are wrong")
        assert f"{amount}, where 5 were to be shown." in text
        assert len(found.shown(label, False)) == count
    gradcam_page.class_figure(found, max(few, key=lambda k: len(found.group(k, False))))
    none_right = found.images.assign(right=False)
    other = gradcam_page.Maps(none_right, found.pictures, found.maps, found.classes, (0, 1), {})
    assert "No image is right" in gradcam_page.class_text(other, found.chosen[0])


@pytest.mark.slow
def test_the_same_again_gives_the_same_bytes_without_images(copied, tmp_path, monkeypatch):
    """Figures are drawn; a report made again elsewhere shows the maps that were kept."""
    asked, made = ["Cattle Egret"], shutil.ignore_patterns("figures", "tables")
    assert gradcam.main([str(copied), "--classes", *asked]) == 0
    file = copied / "figures" / "gradcam_cattle_egret.png"
    with Image.open(file) as picture:
        assert picture.format == "PNG" and 900 < picture.width < 1300
        assert 400 < picture.height < 1400
        assert np.asarray(picture.convert("L")).std() > 20
    svg = file.with_suffix(".svg").read_text()
    assert svg.count("<image") >= 2 * 5 and str(copied) not in svg

    def gone():
        raise UserError("no images here")

    monkeypatch.setattr(birds, "default_birds", gone)
    folder = shutil.copytree(copied, tmp_path / "again", ignore=made)
    again = gradcam_study.sections(load(folder), classes=asked)
    told = [(section.title, section.optional) for section in again]
    assert told == [("Grad-CAM", False), ("Grad-CAM: Cattle Egret", True)]
    files = [file.relative_to(copied) for file in copied.glob("*/gradcam*")]
    assert len(files) == 2 + 2 * 3
    for file in files:
        assert (folder / file).read_bytes() == (copied / file).read_bytes()
    monkeypatch.setattr(gradcam_page, "sections", lambda results, found: found)
    other = gradcam_study.sections(load(folder), classes=["Hoopoe"])  # cannot be made here
    assert [other.classes[label] for label in other.chosen] == asked
    (folder / "gradcam.npz").write_bytes(b"PK damaged")
    (only,) = gradcam_study.sections(load(folder))
    assert only.blocks == (reports.Text("There are no maps: no images here."),)


@pytest.mark.slow
@blank()
def test_named_classes_and_random_picks(copied, capsys):
    arguments = [str(copied), "--classes", "house_crow", "RED WATTLED LAPWING", "--pick", "random"]
    assert gradcam.main(arguments) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    found = gradcam_page.restore(copied)
    assert [found.classes[k] for k in found.chosen] == ["House Crow", "Red-Wattled Lapwing"]
    assert "drawn at random (seed 0)" in (copied / "gradcam.html").read_text()
    first = (copied / "gradcam.npz").read_bytes()
    again = gradcam_study.compute(load(copied), None, arguments[2:4], "random")
    gradcam_page.store(again, copied)
    assert (copied / "gradcam.npz").read_bytes() == first


# ---- what cannot be used ----


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert gradcam.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    return said.err


def test_bad_options_are_one_sentence(copied, tmp_path, capsys):
    assert "not a result folder" in refused(capsys, tmp_path / "nothing")
    said = refused(capsys, copied, "--classes", "Hoopoe", "Dodo")
    assert "no Dodo" in said and "Hoopoe" in said and "White-Breasted Waterhen" in said
    assert "does not exist" in refused(capsys, copied, "--data-dir", tmp_path / "nothing")
    few = birds.make_birds(tmp_path / "few", 2, 1, 1)
    assert "other classes" in refused(capsys, copied, "--data-dir", few)
    (copied / "trials.csv").unlink()
    assert "has not ended" in refused(capsys, copied)
    assert not list(copied.rglob("gradcam*"))


def test_bad_weights_are_one_sentence(copied, capsys):
    weights, told = copied / "checkpoints" / "best.pt", copied / "checkpoints" / "best.json"
    good, best = weights.read_bytes(), json.loads(told.read_text())
    weights.write_bytes(good[: len(good) // 2])
    assert "best.pt is not a file of tensors" in refused(capsys, copied)
    weights.unlink()
    assert "no best.pt in checkpoints/" in refused(capsys, copied)
    weights.write_bytes(good)
    for content, words in (
        (best | {"config": {"lr": 1}}, "does not describe a residual network"),
        (best | {"config": best["config"] | {"norm": "what"}}, "names the norm 'what'"),
        (best | {"config": best["config"] | {"n": 2}}, "does not fit the model"),
        ("{", "best.json is damaged"),
        ([], "best.json is damaged"),
    ):
        told.write_text(content if content == "{" else json.dumps(content))
        assert words in refused(capsys, copied)
    told.write_text(json.dumps(best))
    state = torch.load(weights, weights_only=True)
    state["head.bias"][0] = float("nan")
    torch.save(state, weights)
    assert "not finite" in refused(capsys, copied)
    assert not list(copied.rglob("gradcam*"))


def test_a_report_says_in_a_sentence_why_there_are_no_maps(copied):
    with edited(copied / "study.json") as study:
        study["data"]["kind"] = "folder"
    (section,) = gradcam_study.sections(load(copied))
    (text,) = section.blocks
    assert "--data-dir PATH" in text.text and str(copied) not in text.text
    shutil.rmtree(copied / "checkpoints")
    (section,) = gradcam_study.sections(load(copied))
    assert "no best.pt" in section.blocks[0].text
    assert not list(copied.rglob("gradcam*"))


# ---- photographs ----


@pytest.mark.slow
@blank()
def test_photographs_without_masks(shared_data, tmp_path, capsys, monkeypatch):
    """CIFAR photos: no masks, none of the lab's classes, and the folder must be named again."""
    photos = shared_data / "cifar10"
    settings = ["norm=gn", "n=1", "image_size=16", "epochs=1", "train_images=50", "val_images=30"]
    folder = norms(tmp_path, *settings, "--data-dir", str(photos), report=study.report)
    assert "Grad-CAM: " in (folder / "report.html").read_text()  # the study knew the folder
    for left in (".private.json", "gradcam.npz"):  # as in a folder that was passed on
        (folder / left).unlink()
    assert "--data-dir PATH" in refused(capsys, folder)
    (section,) = gradcam_study.sections(load(folder))
    assert "--data-dir PATH" in section.blocks[0].text
    asked = ["--pick", "random", "--seed", "3", "--classes", "cat"]
    assert gradcam.main([str(folder), "--data-dir", str(photos), *asked]) == 0
    at_random = gradcam_page.restore(folder)
    assert gradcam.main([str(folder), "--data-dir", str(photos)]) == 0
    html = (folder / "gradcam.html").read_text()
    assert "the first 7" in html and "Half in" in html and "map in object" not in html
    found = gradcam_page.restore(folder)
    assert len(found.images) == 7 * 3
    assert len(at_random.images) == 3 and at_random.about["asked"] != found.about["asked"]
    assert found.images["inside"].isna().all() and found.images["half"].between(0, 1).any()
    assert found.about["difference"] < 1e-5
    assert str(photos) not in html
    assert len(list((folder / "figures").glob("gradcam_*.png"))) == 7
    monkeypatch.setattr(gradcam_page, "sections", lambda results, found: found)
    again = gradcam_study.sections(load(folder))  # kept: the images are not asked for again
    assert again.images.equals(found.images)
