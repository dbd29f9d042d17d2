"""The three families step by step, their trainable in this process, and the study at toy size."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis import generation_samples
from analysis.results.folder import load
from analysis.studies.generation import sections
from analysis.studies.generation.samples import load_stored
from core import trial
from core.errors import Diverged
from core.generation import families, features
from core.generation import family as generators_family
from core.generation.family import Average, Draws, slerp
from core.generation.flow_matching import FlowMatching, integrate
from core.trial import records, running
from core.trial import run as trial_run
from studies.generation import study
from tests.support.calls import command, copied, refusal, silent, table, trained
from tests.support.datasets import linked
from tests.support.faults import Lost
from trainables.generation import Config, data, train_generator
from trainables.generation.train import GRID, shown_labels, wanted

FAMILIES = families.NAMES
SMALL = {
    "width": 8, "epochs": 2, "epoch_steps": 2, "batch_size": 16, "patch": 2, "sampler_steps": 2,
    "train_images": 60, "val_images": 30, "image_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_classifier(tmp_path_factory):
    """A classifier of few steps in a cache of its own: what is tested does not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(features, "_LEAST_STEPS", 40)
        patch.setattr(features, "_PASSES", 1)
        data._opened.clear()
        yield
        data._opened.clear()


def build(family: str, classes: int = 3, **options) -> generators_family.Family:
    torch.manual_seed(0)
    return families.build(family, (1, 8, 8), 8, classes, **options)


def batch(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 1, 8, 8, generator=seeded(7)) * 2 - 1, torch.arange(count) % 3


def train(config: dict) -> list[dict]:
    return trained(train_generator, SMALL | config)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- families ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32)])
def test_samples_have_the_shape_and_range_of_images(family, shape):
    found = families.build(family, shape, 8, 0, ema=0.9)
    made = found.sample(torch.zeros(3, dtype=torch.int64), seeded(0))
    assert made.shape == (3, *shape) and made.dtype == torch.float32
    assert made.min() >= -1 and made.max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_draws_from_its_generator_only(family):
    losses = []
    for seed in (1, 1, 2):
        found = build(family)
        before = torch.get_rng_state()
        steps = [found.train_step(*batch(), seeded(seed)) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        losses.append([{k: v.item() for k, v in step.items()} for step in steps])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_carries_on_where_it_was_taken(family):
    """Optimisers, moving average and generators included."""
    whole, draws = build(family, ema=0.9), Draws(3, ("noise",))
    for _ in range(3):
        whole.train_step(*batch(), draws["noise"])
    state, drawn = json_like(whole.state_dict()), draws.state_dict()
    torch.manual_seed(99)
    other, again = families.build(family, (1, 8, 8), 8, 3, ema=0.9), Draws(4, ("noise",))
    other.load_state_dict(state)
    again.load_state_dict(drawn)
    for _ in range(2):
        one, two = (f.train_step(*batch(), d["noise"]) for f, d in ((whole, draws), (other, again)))
        assert one == two
    labels = torch.arange(3)
    made = [f.sample(labels, seeded(0)) for f in (whole, other)]
    assert torch.equal(*made)


def json_like(state: dict) -> dict:
    """The state as it comes back from a file that holds tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_matter_where_there_are_classes_and_not_otherwise(family):
    for classes, matter in ((3, True), (0, False)):
        found = build(family, classes)
        for _ in range(3):
            found.train_step(*batch(), seeded(0))
        latents = found.latents(1, seeded(1))
        one, two = (found.decode(latents, torch.tensor([label])) for label in (0, 1))
        assert torch.equal(one, two) != matter


def test_every_network_of_a_family_learns():
    for family in FAMILIES:
        found = build(family)
        before = json_like(found.state_dict())["networks"]
        found.train_step(*batch(), seeded(0))
        for name, network in found.networks.items():
            moved = [not torch.equal(v, before[name][k]) for k, v in network.named_parameters()]
            assert any(moved), (family, name)
    dcgan = build("dcgan")
    made = dcgan.maker(torch.zeros(4, 100), torch.zeros(4, dtype=torch.int64))
    dcgan.step("discriminator", dcgan.judge(made, torch.zeros(4, dtype=torch.int64)).mean())
    assert all(p.grad is None for p in dcgan.maker.parameters())  # it learns from its own loss only


def test_the_flow_learns_and_so_does_the_vae():
    for family in ("flow", "vae"):
        found, noise = build(family, ema=0.9), seeded(0)
        losses = [found.train_step(*batch(), noise)["loss"].item() for _ in range(60)]
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10]) - 0.05


# --- moving averages, latents, samplers, guidance ---


def test_the_moving_average_follows_its_formula():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average, expected = Average(network, 0.5), network[0].weight.item()
    for update, value in enumerate((3.0, -1.0, 4.0, 2.0, 7.0, 5.0, 0.0, 1.0, 8.0), start=1):
        torch.nn.init.constant_(network[0].weight, value)
        network[1].running_mean.fill_(value)
        average.update()
        keep = min(0.5, (1 + update) / (10 + update))
        expected = keep * expected + (1 - keep) * value
        assert average.network[0].weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.network[1].running_mean.item() == value  # copied, not averaged
    assert network[0].weight.item() == 8.0
    assert Average(network, 0.0).network is network


def test_samples_come_from_the_average():
    found = build("flow", ema=0.9)
    labels, seed = torch.arange(3), 4
    before = found.sample(labels, seeded(seed))
    for parameter in found.network.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(found.sample(labels, seeded(seed)), before)
    found.average.update()
    assert not torch.equal(found.sample(labels, seeded(seed)), before)


def test_arcs_keep_ends_and_length():
    a, b = torch.randn(2, 5, 1, 8, 8, generator=seeded(0))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    unit = [x / x.flatten(1).norm(dim=1)[:, None, None, None] for x in (a, b)]
    middle = slerp(*unit, 0.5)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(slerp(a, a, 0.3), a)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_samplers_on_a_linear_field(steps):
    """dx/dt = a x: Euler multiplies by 1 + h a at each step, Heun by 1 + h a + (h a)^2 / 2."""
    start, a = torch.tensor([1.0, -2.0], dtype=torch.float64), -1.3
    h = 1 / steps
    for sampler, factor in (("euler", 1 + h * a), ("heun", 1 + h * a + (h * a) ** 2 / 2)):
        states = integrate(lambda x, t: a * x, start, steps, sampler)
        assert [t for t, _ in states] == pytest.approx([i / steps for i in range(steps + 1)])
        torch.testing.assert_close(states[-1][1], start * factor**steps)


def test_heun_sees_the_time_and_its_error_falls_with_the_square():
    """dx/dt = 2 t, from 0: x(1) = 1, which Heun has exactly and Euler misses by h."""

    def end(field, start: float, steps: int, sampler: str) -> float:
        begin = torch.full((1,), start, dtype=torch.float64)
        return integrate(field, begin, steps, sampler)[-1][1].item()

    for steps in (2, 8):
        for sampler, missed in (("heun", 0), ("euler", 1 / steps)):
            found = end(lambda x, t: torch.full_like(x, 2 * t), 0, steps, sampler)
            assert found == pytest.approx(1 - missed)
    errors = [abs(end(lambda x, t: x, 1, n, "heun") - np.e) for n in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_guidance_pushes_along_the_difference_of_velocities():
    found = build("flow", guidance=2.5)
    for parameter in found.network.parameters():  # fresh ones start at velocity 0
        torch.nn.init.normal_(parameter, std=0.3)
    x, labels = batch(4)
    times = torch.full((4,), 0.3)
    told = found.average.network(x, times, labels)
    untold = found.average.network(x, times, torch.full_like(labels, 3))
    assert not torch.allclose(told, untold)
    torch.testing.assert_close(found.velocity(x, 0.3, labels), untold + 2.5 * (told - untold))
    found.options = dataclasses.replace(found.options, guidance=1.0)
    torch.testing.assert_close(found.velocity(x, 0.3, labels), told)


def test_the_trajectory_runs_from_noise_to_the_image():
    found = build("flow", sampler_steps=3)
    assert isinstance(found, FlowMatching)
    for _ in range(3):
        found.train_step(*batch(), seeded(0))
    latents, labels = found.latents(2, seeded(0)), torch.arange(2)
    times, states = found.trajectory(latents, labels)
    assert times == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert torch.equal(states[0], latents)
    torch.testing.assert_close(states[-1].clamp(-1, 1), found.decode(latents, labels))


# --- the trainable ---


def test_labels_that_are_asked_for_are_as_frequent_as_real_ones():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    assert torch.bincount(wanted(labels, 10)).tolist() == [5, 3, 2]
    assert torch.equal(wanted(labels, 10), wanted(labels, 10))
    assert shown_labels(10).tolist() == [*range(10)] * 4
    assert len(shown_labels(1000)) == GRID


def test_a_round_of_batches_shows_each_image_once_and_mirrors_only_if_asked():
    cfg = Config(**{**SMALL, "epoch_steps": None, "batch_size": 20})
    pictures = data.opened(cfg)
    seen = [x for x, _ in data.batches(cfg, pictures, seeded(0))]
    images = data.scaled(pictures.train)
    assert len(seen) == 3
    assert sorted(map(key, torch.cat(seen))) == sorted(map(key, images))
    flipping = Config(**{**SMALL, "epoch_steps": 3, "batch_size": 20, "flip": True})
    seen = torch.cat([
        x for x, _ in data.batches(flipping, pictures, seeded(0))
    ])  # fmt: skip
    known = set(map(key, images))
    as_is = [key(x) in known for x in seen]
    assert 0 < sum(as_is) < 60
    assert all(ok or key(x.flip(2)) in known for ok, x in zip(as_is, seen, strict=True))


def key(image: torch.Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reports_every_measure(family):
    rows: list[dict] = []
    train_generator(SMALL | {"family": family}, report=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]
    measures = {"frechet", "precision", "recall", "density", "coverage", "class_balance"}
    for row in rows:
        assert measures | {"class_agreement", "train_loss", "sample_seconds"} < row.keys()
        assert all(np.isfinite(value) for value in row.values())
    assert "class_agreement" not in train({"family": family, "epochs": 1, "conditional": False})[0]


def test_one_seed_one_curve():
    """Also of the first trial of a process, which opens the images."""
    data._opened.clear()
    runs = [train({"family": "dcgan", "seed": s}) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_loss_that_explodes_is_told():
    with pytest.raises(Diverged, match="epoch 1, by step 8: lower lr"):
        train({"family": "vae", "lr": 1e18, "epoch_steps": 8})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_trial_goes_on_bit_for_bit(family, tmp_path):
    config = SMALL | {"family": family, "epochs": 3, "ema": 0.9}

    def run(study: Path, fail_at: int | None = None) -> running.Spec:
        spec = running.Spec("one", config, {}, study, "frechet", "min")

        def forward(row: trial.Row) -> None:
            if row["epoch"] == fail_at:
                raise Lost

        trial_run.run(train_generator, spec, forward)
        return spec

    whole = run(tmp_path / "whole")
    for epoch in (1, 3):  # the last one: all is trained, but nothing stored for the report
        with pytest.raises(Lost):
            run(tmp_path / "broken", epoch)
        assert records.read_result(tmp_path / "broken" / "trials" / "one") is None
        torch.manual_seed(123)
    broken = run(tmp_path / "broken")
    kept = [records.read_rows(spec.folder) for spec in (whole, broken)]
    assert [row["epoch"] for row in kept[0]] == [1, 2, 3]
    for one, two in zip(*kept, strict=True):
        assert all(one[key] == two[key] for key in one.keys() | two.keys() if "seconds" not in key)
    one, two = (torch.load(spec.folder / "best.pt", weights_only=True) for spec in (whole, broken))
    assert all(torch.equal(one[k], two[k]) for k in one)
    stored = [load_stored(tmp_path / folder, "one") for folder in ("whole", "broken")]
    for field in ("samples", "grids", "logits", "interpolation", "trajectory", "nearest_ratio"):
        assert np.array_equal(*(getattr(s, field) for s in stored)), field
    assert len(stored[0].grids) == 3


# --- the study ---

FEW = ["width=8", "image_size=8", "train_images=60", "val_images=30"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert command(study, results, "--smoke", "--samples", 12, "--set", *FEW) == 0
    return results / "generation" / "smoke"


def test_the_study_leaves_tables_figures_report_and_predictions(finished):
    trials = table(finished)
    assert len(trials) == 3 and set(trials["state"]) == {"finished"}
    assert {"frechet", "copies", "nearest_ratio", "parameters"} < set(trials)
    names = {file.stem for file in (finished / "tables").iterdir()}
    assert names == {"generation", "neighbours", "generation_by_seed"}
    drawn = {file.stem for file in (finished / "figures").glob("*.png")}
    assert {"samples", "progress", "curves", "neighbours", "distances", "interpolation"} < drawn
    assert (finished / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (finished / "report.html").read_text()
    assert "is not FID" in page and "classifier features" in page


def test_stored_samples_are_those_that_were_measured(finished):
    for name in table(finished)["trial"]:
        stored = load_stored(finished, name)
        cfg = Config(**stored.config)
        found = data.opened(cfg).reference.measure(
            torch.from_numpy(stored.samples), torch.from_numpy(stored.labels)
        )
        rows = records.read_rows(finished / "trials" / name)
        reported = min(rows, key=lambda row: row["frechet"])  # the weights that are kept
        assert reported["epoch"] == stored.epoch
        for measure, value in found.items():
            assert value == pytest.approx(reported[measure], rel=1e-9), measure


def test_the_report_computes_from_features_samples_and_training_images(finished):
    results = load(finished)
    again, checked = sections.recompute(results)
    assert (checked.features, checked.scores, checked.images) == (3, 3, 3)
    assert max(apart for apart, _ in checked.worst.values()) < 1e-6
    assert {"frechet", "precision", "recall", "copies"} < set(checked.worst)
    best = results.history.groupby("trial")["frechet"].min()  # of the weights that are kept
    found = again.trials.set_index("trial")["frechet"]
    pd.testing.assert_series_equal(found, best.loc[found.index], rtol=1e-6)
    assert "They are those that the trials reported" in (finished / "report.html").read_text()
    check = results.study["data"]["copy_check"]
    assert set(check["found"]) == {"exact", "mirrored", "shifted", "blended"}
    assert check["found"]["exact"] == check["found"]["mirrored"] == 1


def test_tensorboard_shows_a_grid_per_epoch(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in table(finished)["trial"]:
        events = EventAccumulator(str(finished / "tensorboard" / name))
        events.Reload()
        assert [e.step for e in events.Images("samples")] == [1, 2]
        assert {"metrics/frechet", "train/loss"} < set(events.Tags()["scalars"])


def test_samples_are_written_as_png_and_npz(finished):
    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    told = json.loads((finished / "samples" / "samples.json").read_text())
    assert told["trial"] == best["trial"]
    files = sorted((finished / "samples").glob("*.png"))
    assert [f.name for f in files[:2]] == ["000000-0.png", "000001-1.png"] and len(files) == 12
    with np.load(finished / "samples" / "samples.npz") as stored:
        assert stored["images"].shape == (12, 8, 8, 1)
        for file, image in zip(files, stored["images"], strict=True):
            assert np.array_equal(np.asarray(Image.open(file)), image.squeeze())


@pytest.mark.slow
def test_a_copied_folder_reports_and_samples_again_without_data(finished, tmp_path):
    folder = copied(finished, tmp_path, ".private.json")
    assert command(study, tmp_path, "--report-only", "--smoke") == 0
    assert (folder / "report.html").read_bytes() == (finished / "report.html").read_bytes()
    assert generation_samples.main(folder, samples=4) == 0
    for number in range(4):  # the same images as the first of more
        one, two = (next((f / "samples").glob(f"{number:06d}-*")) for f in (folder, finished))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["family=gan"], "vae, dcgan, flow"), (["width=12"], "width=12"),
        (["image_size=20"], "image_size=20"), (["patch=3"], "patch=3"), (["ema=1"], "ema=1"),
        (["family=flow", "patch=4", *FEW], "patch=4"),
        (["epoch_steps=0"], "epoch_steps=0"), (["neighbours=40", *FEW], "neighbours=40"),
        (["inception=missing.pt", *FEW], "missing.pt"), (["train_images=3"], "train_images=3"),
        (["dataset=folder"], "dataset=folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_2(settings, named, tmp_path):
    assert named in refusal(study, tmp_path, "--smoke", "--set", *settings)
    assert not list(tmp_path.rglob("study.json"))


@pytest.mark.slow
def test_real_photos_in_colour(shared_data, tmp_path):
    few = ["--set", "family=flow", "width=8", "train_images=60", "val_images=30", "epochs=1"]
    photos = linked(shared_data / "cifar10", tmp_path / "photos", "*/*/000[0-7].jpg")
    assert command(silent(study), tmp_path, "--smoke", "--data-dir", photos, *few) == 0
    folder = tmp_path / "generation" / "smoke"
    data = json.loads((folder / "study.json").read_text())["data"]
    assert data["channels"] == 3 and data["image_size"] == 32 and data["kind"] == "folder"
    stored = load_stored(folder, table(folder)["trial"][0])
    assert stored.samples.shape[1:] == (3, 32, 32)
