"""Every setting that a study's --help lists, run at another value than its default.

A run is the real study at toy size. The first of each part of a study in REPORTED makes a report of
that part alone; the other studies' reports have tests of their own. A setting or a part that no run
mentions fails the last tests, so that a new one gets a run as well.
"""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.models import conversion_check
from core.models.resnet import resnet
from core.storage.files import read_json
from core.study.options import parse_settings
from tests import test_structure
from tests.support.calls import command, silent, table
from tests.support.reports import blank_figures

STUDIES = {
    name: importlib.import_module(f"studies.{name}").study for name in test_structure.STUDIES
}
BIRDS = "image_size=8 n=1 train_images=50 val_images=25 epochs=1"
PICTURES = "weights=none image_size=16 train_images=12 val_images=20 batch_size=12 epochs=1"
RESNET = "image_size=8 weights=none train_images=20 val_images=20 epochs=1 batch_size=10"
CELL = "images=10 corruption=fog severity=3"
DIGITS = "width=8 epochs=1 epoch_steps=1 train_images=60 val_images=30 batch_size=8"

# A run a line: study, part, settings; WORDS in capitals are put in by the test. On a CPU, bfloat16
# takes a ResNet-18 ten times as long without channels_last.
RUNS = f"""
norms norms {BIRDS} norm=bn,none batch_size=25 recipe=lab lr=0.02 momentum=0.5 weight_decay=0.001
 warmup=0.3 max_norm=0.5 augment=false train_eval=true channels_last=true recompute=true fit=false
 seed=3
norms norms {BIRDS} norm=gn lr_scaling=sqrt accumulate=2 precision=bfloat16
norms norms {BIRDS} norm=ln precision=float16 optimizer=rmsprop
norms lab-recipe {BIRDS} norm=torch_bn,none
batch_size main {BIRDS} norm=bn batch_size=10 optimizer=adam
adaptation severity {CELL} num_bn_updates=3 batch_size=4 order=sorted momentum=0.2 wrap=true
 clean_reference=true corruption_seed=5 image_size=40 seed=2
adaptation severity {CELL} num_bn_updates=2 batch_size=4 cumulative=true order=dirichlet
adaptation methods {CELL} method=prior,tent prior_n=4 tent_lr=0.01 batch_size=5
adaptation severity images=10 corruption=frost severity=1 num_bn_updates=1 batch_size=4 FROST
adaptation severity images=25 image_size=40 corruption=fog severity=3 num_bn_updates=1 batch_size=4
 normalisation=none WEIGHTS
voc main {PICTURES} fit=crop optimizer=adamw lr=0.003 head_lr=0.01 weight_decay=0.01 schedule=step
 warmup=0.2 max_norm=1 augment=0.2 loss=asymmetric class_weights=balanced difficult=negative
 untrained=keep channels_last=true train_eval=true seed=1
voc main {PICTURES} momentum=0.5 schedule=constant precision=bfloat16 channels_last=true
voc folds {PICTURES.replace("images=12", "images=24")} folds=2 fold=0,1
weight_standardization main {PICTURES} variant=A fit=crop optimizer=adamw lr=0.003 head_lr=0.01
 weight_decay=0.01 schedule=step warmup=0.2 max_norm=1 augment=0.2 difficult=positive watch_steps=2
 channels_last=false train_eval=true seed=1
weight_standardization main {PICTURES} variant=B lr=0.005 momentum=0.5 precision=bfloat16
cifar resnet18 {RESNET} variant=layer4,head tune_lr=0.01 momentum=0.5 weight_decay=0.001 warmup=0.3
 max_norm=0.5 augment=false maxpool=false train_eval=true optimizer=adamw seed=1
cifar conv1 {RESNET} conv1=trained,averaged
cifar statistics {RESNET} statistics=moving
cifar cnn model=cnn bn=none,meant lr=0.03 dataset=digits image_size=32 train_images=50 val_images=20
 epochs=1 batch_size=10 precision=bfloat16
generation small {DIGITS} family=flow width=8,16 lr=0.001 ema=0.9 patch=2 guidance=2
 label_dropout=0.3 sampler=euler sampler_steps=2 eval_samples=20 neighbours=2 samples=3 seed=1
generation large {DIGITS} family=vae width=8,16
generation small {DIGITS} family=vae optimizer=sgd conditional=false latent=4 dataset=digits
generation small {DIGITS} family=dcgan channels=rgb image_size=8 flip=true
"""
REPORTED = ("norms", "cifar", "voc", "generation")
CASES = [line.split() for line in RUNS.strip().replace("\n ", " ").splitlines()]
# Refused, each word by a sentence that names the first setting of it.
IMPOSSIBLE = """
norms epochs=0 lr=-1 warmup=1 batch_size=0
voc epochs=0 lr=-1 warmup=1 augment=2 folds=1 folds=-2 fold=0 fold=3,folds=3 momentum=1 batch_size=0
weight_standardization watch_steps=0 epochs=0 augment=2
cifar epochs=0 batch_size=1 lr=-1 warmup=1 image_size=28 image_size=4,model=resnet18
"""
# Settings that take seconds to minutes, with the tests that run them.
ELSEWHERE = {
    "compile": "tests/core/layers/test_norms.py::test_compiled_to_native_code",
    "download": "tests/studies/test_every_option.py::test_download",
    "data_dir": "tests/studies/test_every_option.py::test_data_dir",
    "year": "tests/studies/test_every_option.py::test_data_dir",
    "skip_broken": "tests/studies/test_every_option.py::test_data_dir",
    "inception": "tests/core/generation/test_quality.py",
    "holdout": "tests/trainables/test_batch_size.py, tests/trainables/test_voc.py",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Make the files that settings name."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "frost").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise, 1):
        Image.fromarray(pixels).save(folder / "frost" / f"frost{number}.png")
    torch.manual_seed(0)
    torch.save(resnet(8, 25, "torch_bn").state_dict(), folder / "resnet8.pt")
    return {
        "FROST": f"frost_dir={folder / 'frost'}",
        "WEIGHTS": f"checkpoint={folder / 'resnet8.pt'}",
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_settings_run_and_are_recorded(case, places, tmp_path, monkeypatch):
    name, part, *settings = case
    # How far conversions agree is looked at in tests/trainables/test_weight_standardization.py.
    monkeypatch.setattr(conversion_check, "check", lambda model, photos: [])
    first = case is next(other for other in CASES if other[:2] == case[:2])
    reports = first and name in REPORTED and part != "lab-recipe"  # of it: test_birds.py
    study = STUDIES[name] if reports else silent(STUDIES[name])
    words = [places.get(word, word) for word in settings]
    with blank_figures():
        given = ["--smoke", "--seeds", "1", "--part", part, "--set", *words]
        assert command(study, tmp_path, *given) == 0
    folder = tmp_path / name / "smoke"
    assert (folder / "report.html").is_file() == (folder / "tables").is_dir() == reports
    trials = table(folder)
    assert set(trials.part) == {part} and set(trials.state) == {"finished"}
    assert (trials.epochs_run > 0).all()
    configs = [p["config"] for p in read_json(folder / "study.json")["trials"]]
    for key, value in parse_settings(study, words).items():
        if key not in study.settings.private:
            used = {config[key] for config in configs}
            assert used == set(value if isinstance(value, list) else [value]), key


@pytest.mark.parametrize("line", IMPOSSIBLE.strip().splitlines())
def test_impossible_settings_are_refused(line):
    name, *words = line.split()
    for word in words:
        with pytest.raises(UserError, match=word.partition("=")[0]):
            given = parse_settings(STUDIES[name], word.split(","))
            STUDIES[name].config(
                **{k: v[0] if isinstance(v, list) else v for k, v in given.items()}
            )


@pytest.mark.parametrize("name", STUDIES)
def test_no_setting_is_left_out(name):
    fields = {field.name for field in dataclasses.fields(STUDIES[name].config)}
    same = [case for case in CASES if STUDIES[case[0]].config is STUDIES[name].config]
    run = {word.partition("=")[0] for _, _, *settings in same for word in settings}
    run |= {"frost_dir", "checkpoint"}  # of FROST and WEIGHTS
    assert fields - run - ELSEWHERE.keys() == set()


@pytest.mark.parametrize("name", REPORTED)
def test_no_part_is_left_out(name):
    assert set(STUDIES[name].parts) == {part for other, part, *_ in CASES if other == name}
