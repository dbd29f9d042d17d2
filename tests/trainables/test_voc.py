"""The VOC trainable in this process, its folds, and the study on a few pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from core import trial
from core.data import folds
from core.data.annotations import VOC_CLASSES
from core.data.synthetic import scenes
from core.errors import Diverged
from core.models import pretrained
from core.study import Study
from core.training import multilabel
from core.training.epoch import Learner, evaluate
from studies.voc import study
from tests.support.calls import assert_same_numbers, command, refusal, silent, table, trained
from tests.support.datasets import thing, write
from tests.support.faults import Lost, losing
from tests.support.reports import blank_figures
from trainables.voc import Config, describe_images, train_voc
from trainables.voc.data import images

SMALL = {"weights": "none", "image_size": 32, "epochs": 2, "batch_size": 24, "lr": 0.02}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Forty training and twenty validation pictures."""
    return scenes.make_voc(tmp_path_factory.mktemp("voc") / "set", train=40, val=20)


def train(pictures: Path, **settings) -> list[dict]:
    return trained(train_voc, SMALL | {"data_dir": str(pictures)} | settings)


def voc(pictures: Path, results: Path, *arguments: str, study: Study = study) -> int:
    few = [f"{k}={v}" for k, v in SMALL.items() if k != "weights"]
    fixed = ["--data-dir", pictures, "--weights", "none", "--name", "few", "--set", *few]
    return command(study, results, *fixed, *arguments)


# --- one trial ---


def test_every_epoch_reports_loss_map_and_accuracy(pictures):
    rows = train(pictures)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        for split, running in (("train", "_running"), ("val", "")):
            assert row[f"{split}_loss{running}"] > 0
            assert 0 < row[f"{split}_map{running}"] < 1
            assert 0.5 < row[f"{split}_accuracy{running}"] <= 1
        assert row["head_lr"] == pytest.approx(10 * row["lr"])


def test_one_seed_one_curve(pictures):
    few = {"epochs": 1, "train_images": 16, "val_images": 8}
    runs = [train(pictures, seed=s, **few) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.fixture(scope="module")
def plain(pictures) -> dict:
    """One epoch with the default options."""
    return train(pictures, epochs=1, train_images=16, val_images=8)[0]


@pytest.mark.parametrize(
    "option",
    [{"loss": "asymmetric"}, {"class_weights": "balanced"}, {"optimizer": "adamw"},
     {"optimizer": "rmsprop", "lr": 3e-4}, {"train_eval": True},
     {"schedule": "step"}, {"schedule": "constant"}, {"augment": 0.0}, {"difficult": "negative"},
     {"fit": "crop"}, {"head_lr": 0.0}, {"max_norm": 1.0}, {"channels_last": True}],
    ids=lambda option: ",".join(option),
)  # fmt: skip
def test_options_train_and_matter(pictures, plain, option):
    (changed,) = train(pictures, epochs=1, train_images=16, val_images=8, **option)
    assert np.isfinite(changed["train_loss_running"]) and np.isfinite(changed["val_loss"])
    if option.keys() <= {"schedule", "channels_last"}:
        assert changed["train_loss_running"] == pytest.approx(plain["train_loss_running"], rel=1e-3)
    else:
        assert changed != plain


def test_a_last_batch_of_one_image_is_joined_to_the_one_before(pictures):
    assert np.isfinite(train(pictures, epochs=1, train_images=25)[0]["train_loss_running"])


def test_a_loss_that_explodes_is_told(pictures):
    with pytest.raises(Diverged, match="lower lr or set max_norm"):
        train(pictures, lr=1e30, warmup=0.0, epochs=3)


# --- losses ---


@pytest.mark.parametrize(
    ("labels", "weights"),
    [
        ([[1, -1, -1], [-1, -1, 0], [-1, 1, -1], [0, 1, -1]], [2, 1, 1]),  # absent over present
        # Of both kinds; on every image; on none; nothing but difficult objects: none is silenced.
        ([[1, 1, -1, 0], [-1, 1, -1, 0], [-1, 0, -1, 0]], [2, 1, 1, 1]),
    ],
)
def test_balanced_weights_never_silence_a_class(labels, weights):
    assert multilabel.balance(np.array(labels, np.int8)).tolist() == weights


def test_losses_equal_their_formulas_and_leave_ignored_pairs_out():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 3
    y = torch.randint(-1, 2, (6, 4), generator=generator)
    s, present = torch.sigmoid(x), y == 1
    expected = -torch.where(present, s.log(), (1 - s).log())
    assert torch.allclose(multilabel.binary_cross_entropy(x, y), expected)
    m = (s - 0.05).clamp(min=0)
    focused = -torch.where(present, s.log(), m**4 * (1 - m).log())
    assert torch.allclose(multilabel.asymmetric_loss(x, y), focused)
    w = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    for each in (multilabel.binary_cross_entropy, multilabel.asymmetric_loss):
        heavy = torch.where(present, each(x, y) * w, each(x, y))
        assert torch.allclose(each(x, y, w), heavy)


@pytest.mark.parametrize("loss", [multilabel.binary_cross_entropy, multilabel.asymmetric_loss])
def test_extreme_logits_have_finite_losses_and_gradients(loss):
    x = torch.tensor([[-1e4, 1e4, -1e4, 1e4]], requires_grad=True)
    loss(x, torch.tensor([[1, 1, -1, -1]])).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_ignored_pairs_move_no_weight():
    model = torch.nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.tensor([[1, 0], [-1, 0], [1, 0], [-1, 0]])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = model.weight.detach().clone()
    loss = multilabel.make_loss("bce", None, torch.device("cpu"))
    task = multilabel.pair_loss(loss)
    row = Learner(model, optimizer, schedule, task).train_epoch([(x, y)], 1)
    moved = (model.weight.detach() != before).any(1).tolist()
    assert moved == [True, False]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        x @ before[0] + model.bias.detach()[0], (y[:, 0] == 1).float()
    )
    assert row["train_loss_running"] == pytest.approx(expected.item(), abs=0.2)


def test_augmentation_depends_on_the_image_and_the_epoch_not_on_the_batch():
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), dtype=np.uint8)
    data = images, np.arange(9, dtype=np.int8)[:, None], np.arange(9)

    def seen(batch: int, epoch: int) -> dict[int, torch.Tensor]:
        batches = multilabel.LabelledImages(*data, batch, torch.device("cpu"), augment=1.0)
        pairs = (pair for xs, ys in batches.epoch(epoch) for pair in zip(xs, ys[:, 0], strict=True))
        return {int(y): x for x, y in pairs}

    one, other = seen(3, 1), seen(5, 1)
    assert one.keys() == set(range(9))
    for k, x in one.items():
        assert torch.allclose(x, other[k], atol=1e-5)
    assert not torch.allclose(one[0], seen(3, 2)[0], atol=1e-2)


# --- folds ---


def test_folds_hold_every_class_about_as_often():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((300, 8)) < np.linspace(0.03, 0.5, 8), 1, -1)
    fold = folds.stratified_folds(labels, 3)
    assert (fold == folds.stratified_folds(labels, 3)).all()
    assert np.bincount(fold).tolist() == pytest.approx([100] * 3, abs=3)
    counts = np.array([(labels[fold == k] == 1).sum(0) for k in range(3)])
    assert (np.ptp(counts, axis=0) <= 3).all()
    assert folds.missing(labels, fold, [str(c) for c in range(8)]) == []


def test_a_class_with_one_image_is_missing_elsewhere():
    labels = -np.ones((6, 2), dtype=int)
    labels[:, 0], labels[2, 1] = 1, 1
    fold = folds.stratified_folds(labels, 3)
    assert folds.missing(labels, fold, ["a", "b"]) == [["b", k] for k in range(3) if k != fold[2]]


def test_equal_images_share_a_fold():
    labels = np.ones((12, 1), dtype=int)
    digests = [f"{i // 2}" for i in range(12)]
    fold = folds.stratified_folds(labels, 3, digests)
    assert (fold[::2] == fold[1::2]).all() and len(set(fold.tolist())) > 1


def test_a_share_is_held_out_evenly_and_every_class_stays_in_training():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((200, 6)) < np.linspace(0.05, 0.5, 6), 1, -1)
    labels = np.concatenate([labels, -np.ones((200, 1), dtype=int)], axis=1)
    digests = [f"{min(i, 198)}" for i in range(200)]  # the last two images are equal
    for alone in range(200):  # wherever the only example of a class is, it is trained on
        labels[:, 6], labels[alone, 6] = -1, 1
        if alone % 40 == 0:
            kept, held = folds.hold_out(labels, 0.1, digests)
            assert sorted([*kept, *held]) == list(range(200)) and 17 <= len(held) <= 23
            assert alone in kept and (198 in kept) == (199 in kept)
            share = (labels[held] == 1).sum(0)[:6] / (labels == 1).sum(0)[:6]
            assert (abs(share - 0.1) < 0.06).all()
    again = folds.hold_out(labels, 0.1, digests)
    assert (again[1] == folds.hold_out(labels, 0.1, digests)[1]).all()
    species = np.arange(100) % 4
    _, held = folds.hold_out(species, 0.2)
    assert np.bincount(species[held]).tolist() == [5, 5, 5, 5]


@pytest.fixture(scope="module")
def crossed(pictures, tmp_path_factory) -> Path:
    """A finished study of one seed with three folds."""
    results = tmp_path_factory.mktemp("results")
    assert voc(pictures, results, "--folds", "3", "--seeds", "1", study=silent(study)) == 0
    return results / "voc" / "few"


def stored(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions" / f"{name}.npz", allow_pickle=False) as content:
        return {key: content[key] for key in content}


def mean_ap(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean over classes that occur, difficult objects left out, by scikit-learn."""
    pairs = [(labels[m, c] == 1, scores[m, c]) for c, m in enumerate((labels != 0).T)]
    return np.mean([average_precision_score(y, score) for y, score in pairs if y.any()])


def test_no_image_is_scored_by_a_model_that_trained_on_it(crossed, pictures):
    """The files that each model trained on are noted where it read them, and checked here."""
    listed = {}
    for split in ("train", "val"):
        names = (pictures / scenes.FOLDER / f"ImageSets/Main/{split}.txt").read_text().split()
        listed[split] = {f"{scenes.FOLDER}/JPEGImages/{name}.jpg" for name in names}
    held: list[str] = []
    for k in range(3):
        found = stored(crossed, f"part=folds,fold={k},seed=0")
        trained, scored = set(found["train_files"].tolist()), found["files"].tolist()
        assert trained and scored and not trained & set(scored)
        assert trained | set(scored) == listed["train"]
        assert not trained & set(found["val_files"].tolist())
        assert set(found["val_files"].tolist()) == listed["val"]
        held += scored
    assert sorted(held) == sorted(listed["train"])  # each once


def test_a_fold_trial_trains_on_the_images_it_names(pictures, monkeypatch):
    """Look at the pixels that reach the network, not at what is said about them."""
    from core.data import voc as voc_data

    sets = voc_data.load(pictures, 32)
    known = {image.tobytes(): file for image, file in zip(
        sets["train"].images, sets["train"].files, strict=True)}  # fmt: skip
    seen: list[str] = []
    distort = multilabel.distort

    def watching(images, draws, strength):
        seen.extend(known[image.numpy().tobytes()] for image in images)
        return distort(images, draws, strength)

    monkeypatch.setattr(multilabel, "distort", watching)
    saved: dict = {}
    monkeypatch.setattr(
        trial, "save_predictions", lambda *a: saved.update(a[4], files=np.array(a[2]))
    )
    train(pictures, folds=3, fold=1)
    assert set(seen) == set(saved["train_files"].tolist()) and len(seen) == 2 * len(set(seen))
    assert not set(seen) & set(saved["files"].tolist())


def test_a_fold_keeps_the_scores_of_every_epoch(crossed):
    history = table(crossed, "history")
    for k in range(3):
        name = f"part=folds,fold={k},seed=0"
        found, rows = stored(crossed, name), history[history.trial == name]
        assert found["val_scores"].shape == (2, 20, 20) == (*found["val_scores"].shape[:2], 20)
        assert rows.val_map.isna().all()  # nothing of the validation images is looked at
        for told, scores in zip(rows.heldout_map, found["heldout_scores"], strict=True):
            assert mean_ap(found["labels"], scores) == pytest.approx(told, abs=1e-12)
        assert (found["scores"] == found["heldout_scores"][-1]).all()


def test_predictions_of_the_best_trial_s_best_epoch_give_its_map_again(crossed):
    best = json.loads((crossed / "checkpoints/best.json").read_text())
    assert best["trial"] == "part=main,seed=0"  # and no fold
    row = table(crossed, index="trial").loc["part=main,seed=0"]
    found = stored(crossed, "part=main,seed=0")
    assert found["epoch"] == row.best_epoch == row.scores_epoch
    assert found["scores"].dtype == np.float32 and found["labels"].dtype == np.int8
    assert set(np.unique(found["labels"])) <= {-1, 0, 1}
    assert mean_ap(found["labels"], found["scores"]) == pytest.approx(row.best_val_map, abs=1e-12)


def test_the_training_images_are_scored_once_with_the_kept_weights(crossed, pictures):
    trials = table(crossed, index="trial")
    row = trials.loc["part=main,seed=0"]
    cfg = Config(**SMALL | {"data_dir": str(pictures)})
    seen, _ = images(cfg)
    model = pretrained.resnet18("none", len(seen.classes))
    weights = crossed / "trials" / "part=main,seed=0" / "best.pt"
    model.load_state_dict(torch.load(weights, weights_only=True))
    batches = multilabel.LabelledImages(
        seen.images, seen.labels, np.arange(len(seen)), 16, torch.device("cpu")
    )
    loss = multilabel.make_loss("bce", None, torch.device("cpu"))
    task = multilabel.pair_loss(loss)
    found, _ = evaluate(model, batches.epoch(0), task, prefix="best_train_")
    assert found == pytest.approx({key: row[key] for key in found}, rel=1e-4)
    assert trials.drop("part=main,seed=0").best_train_map.isna().all()  # folds keep no weights


def test_folds_are_described(pictures):
    described = describe_images(SMALL | {"data_dir": str(pictures), "folds": 3})
    assert sum(described["folds"]["sizes"]) == 40 and described["folds"]["number"] == 3
    assert str(pictures.parent) not in json.dumps(described)


@pytest.mark.slow
def test_a_search_never_scores_the_validation_images(pictures, tmp_path):
    few = ["--set", "image_size=32", "holdout=0.25", "epochs=1", "batch_size=15", "--seeds", "1"]
    search = ["--weights", "none", "--name", "few", "--search", "optuna", "--trials", "1"]
    assert command(silent(study), tmp_path, "--data-dir", pictures, *search, *few) == 0
    folder = tmp_path / "voc" / "few"
    holdout = json.loads((folder / "study.json").read_text())["data"]["holdout"]
    assert (holdout["scored"], holdout["trained"]) == (10, 30)
    history = table(folder, "history", "trial")
    held, seen = set(), set()
    for name in ("default", "search-0000"):
        found = stored(folder, name)
        held, seen = set(found["files"].tolist()), set(found["train_files"].tolist())
        assert len(held) == 10 and len(seen) == 30 and not held & seen
        told = history.heldout_map[name]
        assert mean_ap(found["labels"], found["scores"]) == pytest.approx(told, abs=1e-12)
        assert np.isnan(history.val_map[name])
    for name in ("default", "search-0000"):
        found = stored(folder, f"reported={name},seed=0")
        assert set(found["train_files"].tolist()) == held | seen
        assert len(found["files"]) == 20 and not set(found["files"].tolist()) & seen
        assert history.val_map[f"reported={name},seed=0"] > 0


# --- the study ---


@pytest.mark.slow
def test_an_interrupted_study_goes_on_to_the_same_numbers(crossed, pictures, tmp_path):
    arguments = ("--folds", "3", "--seeds", "1")
    # lost in the main trial, and in the first fold's last epoch
    with losing(lambda seen: len(seen) in (1, 4)) as seen:
        for more in ((), ("--resume",)):
            with pytest.raises(Lost):
                voc(pictures, tmp_path, *arguments, *more)
        assert voc(pictures, tmp_path, *arguments, "--resume", study=silent(study)) == 0
    assert len(seen) == 8  # four trials of two epochs, none twice
    assert_same_numbers(crossed, tmp_path / "voc" / "few", "memory", "allocated")


@pytest.mark.slow
def test_the_real_photographs_train(shared_data, tmp_path):
    root = shared_data / "VOCdevkit"
    assert voc(root, tmp_path, "--seeds", "1", "--set", "epochs=1", study=silent(study)) == 0
    found = stored(tmp_path / "voc" / "few", "seed=0")
    expected = pd.read_csv(shared_data.parent / "reference/voc-labels.csv", index_col="image")
    for file, row in zip(found["files"].tolist(), found["labels"].tolist(), strict=True):
        assert (root / file).is_file() and row == expected.loc[Path(file).stem].tolist()


def test_bad_data_end_with_one_sentence_and_code_2(pictures, tmp_path):
    def told(*arguments: object) -> str:
        return refusal(study, tmp_path / "results", *arguments)

    here, none = ("--data-dir", pictures), ("--weights", "none")
    one, two = (tmp_path / "VOCdevkit" / name for name in ("one", "two"))
    for copy in (one, two):
        shutil.copytree(pictures, copy)
    assert "2 devkits" in told("--data-dir", tmp_path / "VOCdevkit")
    assert "at least 2" in told(*here, "--folds", 1)
    assert "only 40 training images" in told(*here, *none, "--folds", 41)
    assert "only 40 training images" in told(*here, *none, "--set", "batch_size=41")
    assert "say with --data-dir" in told("--scale", "full", "--download")
    assert "nowhere.pt" in told(*here, "--weights", tmp_path / "nowhere.pt")
    (two / "classes.txt").write_text("\n".join([*VOC_CLASSES, "dragon"]))
    assert "no training example of dragon" in told("--data-dir", two, *none)
    (one / scenes.FOLDER / "Annotations" / "synthetic_000001.xml").write_text("")
    assert "000001.xml (empty)" in told("--data-dir", one)
    (one / scenes.FOLDER / "ImageSets/Main/val.txt").write_text("nowhere\n")
    assert "val.txt names nowhere" in told("--data-dir", one)
    assert not list(tmp_path.rglob("results/**/*.json"))


def test_one_class_with_images_of_difficult_objects_alone(tmp_path, monkeypatch, capsys):
    """Every image shows it, or nothing that counts: whatever is said, all of it is right."""
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    images = {f"{k:02}": [thing("raccoon", int(k % 4 == 0))] for k in range(24)}
    lists = {"train": [*images][:12], "val": [*images][12:]}
    write(tmp_path / "kit", images, lists)
    options = ("--seeds", "1", "--set", "class_weights=balanced", "batch_size=4", "epochs=1")
    with blank_figures():
        assert voc(tmp_path / "kit", tmp_path, *options) == 0
    folder = tmp_path / "voc" / "few"
    history = table(folder, "history")
    assert (history.filter(like="_map") == 1).all(axis=None)
    assert (history.filter(like="train_loss") > 0).all(axis=None)  # 0 with a weight of 0
    found = table(folder / "tables", "average_precision").iloc[0]
    assert found["best_ap"] == found["ap_2007"] == found["ap_2010"] == 1
    assert (found["images"], found["difficult"]) == (9, 3)
    best = table(folder)["best_epoch"].item()
    assert found["accuracy"] == history.set_index("epoch")["val_accuracy"][best]
    notes = json.loads((folder / "study.json").read_text())["data"]["notes"]
    told = "every image of train.txt that counts shows raccoon"
    assert told in notes[0] and told in (folder / "report.html").read_text()
    assert told in capsys.readouterr().out
