"""The hand-in zip: what is in it, that every path is relative, that it is the same each time."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from analysis import hand_in
from analysis.studies.voc import sections
from core.errors import UserError
from tests.support import results as built
from tests.support.calls import ROOT, python


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    root = built.draw_images(folder / "photos", 30)
    study = built.voc(folder / "results" / "voc" / "demo", images=30, seeds=1)
    (study / ".private.json").write_text(json.dumps({"data_dir": str(root)}))
    for name in ("trials", "ray", "tensorboard"):
        (study / name).mkdir()
        (study / name / "file").write_text("of the engine")
    sections.report(study)
    return study


def packed(study, tmp_path, *options) -> zipfile.ZipFile:
    out = tmp_path / "x.zip"
    assert hand_in.main([str(study), "--out", str(out), *options]) == 0
    return zipfile.ZipFile(out)


def test_everything_is_in_it_and_nothing_of_this_machine_the_same_each_time(made, tmp_path):
    packed(made, tmp_path)
    one = (tmp_path / "x.zip").read_bytes()
    archive = packed(made, tmp_path)
    assert (tmp_path / "x.zip").read_bytes() == one
    names = archive.namelist()
    top = "hand-in-voc-demo/"
    assert all(name.startswith(top) and ".." not in name for name in names)
    inside = {name.removeprefix(top) for name in names}
    results = "results/voc/demo/"
    wanted = {
        "README.txt", "requirements.txt", "code/core/study/declare.py", "code/pyproject.toml",
        "code/analysis/browser/templates/browse.js", f"{results}report.pdf", f"{results}study.json",
        f"{results}report.html", f"{results}checkpoints/best.pt",
        f"{results}predictions/seed=0.npz", f"{results}tables/average_precision.csv",
    }  # fmt: skip
    assert wanted <= inside
    for unwanted in ("trials/", "ray/", "tensorboard/", ".private"):
        assert not any(name.startswith(results + unwanted) for name in inside)
    for name in names:
        for path in (made.parent, ROOT):
            assert str(path).encode() not in archive.read(name), name
    study = json.loads(archive.read(f"{top}{results}study.json"))
    assert study["command"][-1] == "…/VOCdevkit"  # was /home/someone/VOCdevkit
    readme = archive.read(f"{top}README.txt").decode()
    assert "commit" in readme or "not from a git checkout" in readme
    pins = archive.read(f"{top}requirements.txt").decode().splitlines()
    assert any(line.startswith("torch==") for line in pins) and all("==" in line for line in pins)


@pytest.mark.slow
def test_what_is_packed_works_in_another_place(made, tmp_path):
    packed(made, tmp_path).extractall(tmp_path / "else")
    top = tmp_path / "else" / "hand-in-voc-demo"
    before = (top / "results/voc/demo/report.html").read_bytes()
    (top / "results/voc/demo/report.html").unlink()
    program = "from pathlib import Path; from analysis.studies import voc; "
    program += "voc.report(Path('../results/voc/demo'))"
    done = python("-c", program, cwd=top / "code", PYTHONPATH="")  # its own packages, not these
    assert done.returncode == 0, done.stderr
    # the same report, pictures included, without the images and without the note where they are
    assert (top / "results/voc/demo/report.html").read_bytes() == before


def test_pages_come_with_it(made, tmp_path):
    names = packed(made, tmp_path, "--pages").namelist()
    assert "hand-in-voc-demo/pages/index.html" in names
    assert sum("/pages/images/" in name for name in names) == 30


def test_absolute_names_are_refused(made, tmp_path, capsys):
    study = shutil.copytree(made, tmp_path / "voc" / "demo")
    leak = study / "tables" / "leak.md"
    leak.write_text(f"from {study}/predictions")
    with pytest.raises(UserError, match=r"leak.md names .*, a folder of this machine"):
        hand_in.pack(hand_in.Options(study, tmp_path / "x.zip"))
    leak.unlink()
    file = study / "predictions" / "seed=0.npz"
    with np.load(file) as stored:
        known = dict(stored)
    for bad in ("/home/ann/VOC/1.jpg", r"C:\VOC\1.jpg", str(study / "1.jpg")):
        np.savez(file, **known | {"files": np.array([bad, *known["files"][1:]])})
        assert hand_in.main([str(study), "--out", str(tmp_path / "x.zip")]) == 2
        said = capsys.readouterr().err
        assert "seed=0.npz names" in said and not (tmp_path / "x.zip").exists()


def test_what_is_missing_is_said(tmp_path, capsys):
    study = built.voc(tmp_path / "voc" / "demo", images=10, seeds=1)
    assert hand_in.main([str(study)]) == 2
    assert "--report-only" in capsys.readouterr().err
    for name in ("report.html", "report.pdf"):
        (study / name).write_text("x")
    (study / "checkpoints" / "best.pt").unlink()
    assert hand_in.main([str(study)]) == 2
    assert "holds no model" in capsys.readouterr().err
