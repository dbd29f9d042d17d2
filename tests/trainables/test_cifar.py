"""The CIFAR trainable in this process, and its study from the command line to the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torchvision.models import resnet18

from analysis.results.folder import load, load_predictions
from core.data import small
from core.data.batches import Batches
from core.errors import UserError
from core.models.small_cnn import FORMS, SmallCNN, without_gradient
from core.study.plan import plan
from core.training.epoch import cross_entropy, evaluate
from core.training.recipe import LEARNING_RATES
from core.trial import records, running
from core.trial import run as trial_run
from studies.cifar import study
from tests.support.calls import assert_same_numbers, command, refusal, silent, table, trained
from tests.support.datasets import linked
from tests.support.faults import Lost, losing
from tests.support.reports import blank_figures
from trainables.cifar import Config, check_batches, describe_images, train_cifar
from trainables.cifar.data import batches, images, merge_single, steps_of
from trainables.cifar.train import build, facts, training_mode_accuracy

CNN = {"train_images": 200, "val_images": 50, "epochs": 2, "batch_size": 33, "lr": 0.1}
RESNET = {
    "model": "resnet18", "weights": "none", "image_size": 8, "train_images": 20, "val_images": 20,
    "epochs": 2, "batch_size": 10,
}  # fmt: skip


def test_the_forms_have_the_labs_parameters_and_start_from_the_same_weights():
    models = {}
    for bn in FORMS:
        torch.manual_seed(3)
        models[bn] = SmallCNN(bn)
    counts = {bn: sum(p.numel() for p in model.parameters()) for bn, model in models.items()}
    assert counts == {"none": 62_006, "listing": 62_458, "meant": 62_458}
    for name, value in models["none"].state_dict().items():
        assert all(torch.equal(model.state_dict()[name], value) for model in models.values())


def test_the_listing_is_the_labs_to_the_bit():
    model = SmallCNN("listing").eval()
    model.bn1.running_mean += 0.3
    x = torch.randn(4, 3, 32, 32)
    y = model.bn1(model.pool(torch.relu(model.conv1(x))))
    y = torch.flatten(model.bn2(model.pool(torch.relu(model.conv2(y)))), 1)
    y = model.fc3(torch.relu(model.fc2(torch.relu(model.fc1(y)))))
    assert torch.equal(model(x), y)
    model.bn3.running_mean += 1
    assert torch.equal(model(x), y)  # never called
    meant = SmallCNN("meant").eval()
    before = meant(x)
    meant.bn4.running_mean += 1
    assert not torch.equal(meant(x), before)


@pytest.mark.parametrize(("bn", "dead"), [("none", 0), ("listing", 408), ("meant", 0)])
def test_dead_parameters_are_found_and_nothing_is_left_of_the_search(bn, dead):
    cfg = Config(bn=bn)
    model = build(cfg, 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert facts(cfg, model)["dead_parameters"] == dead
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(without_gradient(model)) == len(list(model.parameters()))


def test_dead_layers_never_count_a_batch():
    torch.manual_seed(0)
    model = SmallCNN("listing")
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert model.bn1.num_batches_tracked == 1 and model.bn3.num_batches_tracked == 0
    assert model.bn3.weight.grad is None


@pytest.mark.parametrize("bn", FORMS)
def test_every_form_learns_and_reports_every_metric(bn):
    rows: list[dict] = []
    train_cifar(CNN | {"bn": bn, "epochs": 3}, report=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    names = ("loss", "accuracy", "error", "micro_f1", "macro_f1")
    for row in rows:
        assert {n for name in names for n in (f"val_{name}", f"train_{name}_running")} < row.keys()
        assert 0 < row["train_seconds"] <= row["seconds"]
    assert rows[-1]["train_loss_running"] < rows[0]["train_loss_running"]


@pytest.mark.parametrize("settings", [CNN, RESNET | {"variant": "layer4"}], ids=["cnn", "resnet18"])
def test_one_seed_one_curve(settings):
    runs = [trained(train_cifar, settings | {"seed": seed}) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_evaluation_depends_on_neither_batch_size_nor_order():
    sets = small.load("digits", None, 32, {"val": 50})
    torch.manual_seed(0)
    model = SmallCNN("meant")
    with torch.no_grad():
        for x, _ in Batches(sets["val"], 50, torch.device("cpu")).epoch(0):
            for _ in range(5):
                model(x)  # running statistics that mean something
    found = {}
    for size in (1, 7, 50):
        data = Batches(sets["val"], size, torch.device("cpu"))
        found[size] = evaluate(model, data.epoch(0), cross_entropy(10))[1]
    assert found[1].numpy() == pytest.approx(found[50].numpy(), abs=1e-5)
    assert found[7].numpy() == pytest.approx(found[50].numpy(), abs=1e-5)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    x = next(iter(Batches(sets["val"], 50, torch.device("cpu")).epoch(0)))[0]
    with torch.no_grad():
        assert model(x[order]).numpy() == pytest.approx(found[50][order].numpy(), abs=1e-5)
        model.train()  # where the other images matter
        alone, together = model(x[:2]), model(x)[:2]
    assert (alone - together).abs().max() > 1e-2


def test_scoring_in_training_mode_leaves_the_network_alone():
    model = SmallCNN("meant").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = [(torch.randn(3, 3, 32, 32), torch.zeros(3, dtype=torch.int64))]
    assert 0 <= training_mode_accuracy(model, data) <= 1
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 20, 21])
def test_a_last_batch_of_one_joins_the_one_before(count):
    x = torch.arange(count, dtype=torch.float32)[:, None]
    made = list(merge_single(zip(x.split(10), x[:, 0].long().split(10), strict=True)))
    assert torch.equal(torch.cat([part for part, _ in made]), x)
    assert torch.equal(torch.cat([y for _, y in made]), x[:, 0].long())
    assert len(made) == steps_of(count, 10)
    assert all(len(y) > 1 for _, y in made) or count == 1


def test_an_epoch_with_one_image_left_over_trains():
    (row,) = trained(train_cifar, CNN | {"train_images": 67, "epochs": 1})
    assert np.isfinite(row["train_loss_running"])


def test_digits_are_not_mirrored_and_photographs_are(shared_data):
    device = torch.device("cpu")
    for settings, mirrored in (({}, False), ({"data_dir": str(shared_data / "cifar10")}, True)):
        cfg = Config(**settings)
        assert small.MIRRORED[small.resolve(cfg.dataset, cfg.data_dir)] == mirrored
    cfg = Config(augment=False, train_images=20)
    train_set, _, _ = batches(cfg, images(cfg), device)
    seen = torch.cat([x for x, _ in train_set.epoch(1)])
    plain = torch.cat([x for x, _ in Batches(images(cfg)["train"], 20, device).epoch(0)])
    assert {float(v) for v in seen.sum((1, 2, 3))} == {float(v) for v in plain.sum((1, 2, 3))}


def test_batches_larger_than_the_training_set_are_refused():
    described = describe_images({"dataset": "digits"})
    good = vars(Config(batch_size=64))
    check_batches([good], described)
    with pytest.raises(UserError, match="only 20 training images"):
        check_batches([good, vars(Config(batch_size=64, train_images=20))], described)


def test_weights_belong_to_the_fingerprint(tmp_path):
    one = tmp_path / "one.pt"
    torch.save(resnet18(num_classes=10).state_dict(), one)
    settings = {"model": "resnet18", "image_size": 8}
    none, file = (describe_images(settings | {"weights": str(w)}) for w in ("none", one))
    assert none["fingerprint"] != file["fingerprint"] and str(tmp_path) not in json.dumps(file)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "dataset=imagenet"], "dataset must be one of auto"),
        (["--data-dir", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--set", "dataset=cifar10"], "download=true"),
        (["--set", "dataset=folder"], "--data-dir PATH"),
        (["--weights", "/nowhere/w.pt"], "/nowhere/w.pt"),
        (["--set", "bn=bn3"], "bn must be one of none, listing, meant"),
        (["--set", "variant=layer3"], "variant must be one of all, layer4"),
        (["--part", "vgg"], "cifar has resnet18"),
        (["--set", "train_images=5"], "train_images=5: at least 10"),
        (["--set", "val_images=9"], "val_images=9: at least 10"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    assert sentence in refusal(study, tmp_path, "--smoke", *arguments)
    assert not list(tmp_path.glob("cifar/*"))


def test_weights_that_do_not_fit_are_told(tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, other)
    assert "does not fit ResNet-18" in refusal(study, tmp_path, "--smoke", "--weights", other)


def test_layers_are_printed_and_nothing_is_run(tmp_path, capsys):
    assert command(study, tmp_path, "--layers") == 0
    shown = capsys.readouterr().out
    assert "62,458" in shown and "11,173,962" in shown and "never used" in shown
    assert "floor((32 + 2·1 − 3) / 2) + 1 = 16" in shown  # the pool behind conv1
    assert not (tmp_path / "cifar").exists()


FEW = ["--smoke", "--set", "train_images=20", "val_images=20", "epochs=2"]


@pytest.mark.slow
def test_the_smoke_study_reports_everything(tmp_path):
    with blank_figures():
        assert command(study, tmp_path, "--smoke") == 0
    folder = tmp_path / "cifar" / "smoke"
    trials = table(folder)
    assert set(trials.state) == {"finished"} and len(trials) == 13
    frozen = trials[trials.frozen_parameters > 0]
    assert len(frozen) == 5
    assert (frozen.frozen_weights_before == frozen.frozen_weights_after).all()
    still = frozen[frozen.statistics == "frozen"]
    assert (still.frozen_statistics_before == still.frozen_statistics_after).all()
    moved = frozen[frozen.statistics == "moving"]
    assert (moved.frozen_statistics_before != moved.frozen_statistics_after).all()
    layer4 = trials[(trials.variant == "layer4") & (trials.conv1 == "printed")]
    assert set(layer4.trainable_parameters) == {8_398_858}
    for name in ("cnn", "resnet18", "frozen", "modes", "trials"):
        assert (folder / "tables" / f"{name}.csv").is_file()
    page = (folder / "report.html").read_text()
    assert "In 5 of 5 trials with a frozen part" in page
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    results = load(folder)
    row = results.trials[results.trials["bn"] == "meant"].iloc[-1]
    saved = load_predictions(folder, row["trial"])
    assert saved.epoch == row["best_epoch"]
    assert accuracy_score(saved.labels, saved.scores.argmax(1)) == pytest.approx(
        row["best_val_accuracy"], abs=1e-12
    )


@pytest.mark.slow
def test_interrupted_trials_go_on_to_the_same_bits(tmp_path):
    """A CNN and a ResNet-18 with frozen layers lose their process after the first epoch."""
    parts = {"cnn": ["bn=meant", "lr=0.1"], "resnet18": ["variant=layer4"]}
    for part, settings in parts.items():
        arguments = [*FEW, *settings, "--part", part, "--name", part]
        assert command(silent(study), tmp_path / "whole", *arguments) == 0
        with losing(lambda seen: True), pytest.raises(Lost):
            command(study, tmp_path / "cut", *arguments)
        assert command(silent(study), tmp_path / "cut", *arguments, "--resume") == 0
        whole, cut = (tmp_path / at / "cifar" / part for at in ("whole", "cut"))
        assert_same_numbers(whole, cut)
        assert {"peak_memory_mib", "best_train_accuracy", "scores_epoch"} < set(table(whole))


@pytest.mark.parametrize("part", ["cnn", "resnet18"])
def test_learning_rates_of_the_study_follow_the_optimizer_and_those_of_the_user_do_not(part):
    def rates(**settings):
        trials = plan(study, "demo", part, 1, settings).trials
        name = "lr" if part == "cnn" else "tune_lr"
        return len(trials), list(dict.fromkeys(t.config[name] for t in trials))

    plain, (count, adam) = rates()[1], rates(optimizer="adam")
    ratio = LEARNING_RATES["adam"] / LEARNING_RATES["sgd"]
    assert adam == pytest.approx([ratio * rate for rate in plain], rel=1e-2)
    assert count == rates()[0] and rates(optimizer="sgd")[1] == plain
    by_hand = {"lr": [0.5], "tune_lr": 0.5}
    assert rates(optimizer="adam", **by_hand)[1] == [0.5]


def test_scores_and_metrics_are_of_the_kept_epoch(tmp_path):
    """Kept on purpose is the worst epoch, which no other resembles."""
    settings = CNN | {"bn": "meant", "epochs": 6, "train_images": 400, "batch_size": 20, "seed": 0}
    spec = running.Spec("one", settings, {}, tmp_path, "val_accuracy", "min")
    trial_run.run(train_cifar, spec, lambda row: None)
    result, rows = records.read_result(spec.folder), records.read_rows(spec.folder)
    assert result is not None and result["state"] == "finished"
    worst = min(rows, key=lambda row: row["val_accuracy"])
    assert worst["val_accuracy"] < rows[-1]["val_accuracy"] - 0.2
    saved, facts = load_predictions(tmp_path, "one"), result["facts"]
    assert saved.epoch == worst["epoch"] == facts["scores_epoch"]
    found = accuracy_score(saved.labels, saved.scores.argmax(1))
    assert found == pytest.approx(worst["val_accuracy"], abs=1e-12)
    cfg, cpu = Config(**settings), torch.device("cpu")
    network = build(cfg, 10)
    network.load_state_dict(torch.load(spec.folder / "best.pt", weights_only=True))
    seen, unseen = (Batches(images(cfg)[split], 20, cpu) for split in ("train", "val"))
    again, _ = evaluate(network, seen.epoch(0), cross_entropy(10), prefix="best_train_")
    assert again == pytest.approx({key: facts[key] for key in again}, rel=1e-5)
    found = training_mode_accuracy(network, unseen.epoch(0))
    assert found == facts["training_mode_accuracy"]


def test_real_photos_train(shared_data, tmp_path):
    photos = linked(shared_data / "cifar10", tmp_path, "*/*/000[0-7].jpg")
    settings = {"data_dir": str(photos), "train_images": 60, "val_images": 20}
    (row,) = trained(train_cifar, settings | {"epochs": 1, "batch_size": 20, "lr": 0.05})
    assert np.isfinite(row["val_loss"])
