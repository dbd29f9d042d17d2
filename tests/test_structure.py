"""The house: who may know whom, what is imported from where, what every study file holds."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.study import Study
from core.study.plan import plan
from tests.conftest import ROOT

MAY_KNOW = {
    "core": set(),
    "trainables": {"core"},
    "analysis": {"core"},
    "studies": {"core", "trainables", "analysis"},
}
STUDIES = sorted(p.stem for p in (ROOT / "studies").glob("[a-z]*.py"))


@pytest.mark.parametrize("package", MAY_KNOW)
def test_packages_come_from_this_checkout(package):
    """Another distribution that installs a `core` would win over an editable install, silently."""
    found = importlib.import_module(package).__file__
    assert found is not None and Path(found).parent == ROOT / package


@pytest.mark.parametrize("package", MAY_KNOW)
def test_arrows_point_down(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top not in MAY_KNOW or top == package or top in MAY_KNOW[package], (
                    f"{path.relative_to(ROOT)} imports {name}"
                )


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned_at_every_scale(name):
    study = importlib.import_module(f"studies.{name}").study
    assert isinstance(study, Study) and study.name == name
    for scale in ("demo", "full", "smoke"):
        planned = plan(study, scale, None, None, {})
        assert len({p.trial for p in planned.trials}) == len(planned.trials) > 0
        assert study.scales[scale].seeds >= 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_setting_is_documented(name):
    study = importlib.import_module(f"studies.{name}").study
    for field in dataclasses.fields(study.config):
        assert re.search(rf"^ +{field.name}: \S", study.config.__doc__, re.M), field.name


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_reads_on_one_screen(name):
    assert len((ROOT / "studies" / f"{name}.py").read_text().splitlines()) <= 80


def test_no_study_file_loads_what_only_its_trials_need():
    """`--help` and the refusal of a wrong option come at once."""
    heavy = {"torch", "torchvision", "ray", "pandas", "matplotlib"}
    code = f"import sys, {', '.join(f'studies.{name}' for name in STUDIES)}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert {f"studies.{name}" for name in STUDIES} < set(loaded)
    assert not heavy & set(loaded)


@pytest.mark.parametrize("package", MAY_KNOW)
def test_nothing_from_a_file_is_unpickled(package):
    """A pickle from a data set or result folder could run code."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "pickle" not in [a.name for a in node.names] or uses_no_load(path), path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
            if called.endswith(("load_state_dict_from_url", "hub.load")):
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert keywords.get("allow_pickle") in (None, "False"), f"{path}:{node.lineno}"


def uses_no_load(path: Path) -> bool:
    """Return whether a module that imports pickle needs it for the name of its error only."""
    words = re.findall(r"\bpickle\.(\w+)", path.read_text())
    return set(words) <= {"UnpicklingError"}
