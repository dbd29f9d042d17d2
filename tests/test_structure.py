"""The house: who may know whom, how large rooms and files are, what every study file holds."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from core.study import Study
from core.study.plan import plan
from tests.support.calls import ROOT, python

MAY_KNOW = {
    "core": set(),
    "trainables": {"core"},
    "analysis": {"core"},
    "studies": {"core", "trainables", "analysis"},
}
# Folders and files of core, each knowing only those in later lines.
STOREYS = (
    {"study"}, {"cluster"}, {"trial"}, {"labs"}, {"generation", "shift"}, {"models"}, {"training"},
    {"data"}, {"numerics"}, {"layers"}, {"storage"},
    {"provenance", "instruction_set", "output", "ranges", "choices", "later"}, {"errors"},
)  # fmt: skip
MACHINE = {"study", "cluster", "trial"}
SCIENCE = {"generation", "shift", "models", "training", "data", "layers"}
STUDIES = sorted(p.stem for p in (ROOT / "studies").glob("[a-z]*.py"))
# Only benchmarks/reference_corruptions.py, which says how to install them for itself.
REFERENCE = {"cv2", "imagecorruptions", "skimage"}
# What is imported, in this order, and what must not have been loaded by then.
TORCH = {"torch", "torchvision", "matplotlib"}
TRIALS = {"ray", "optuna", *TORCH}
LIGHT = (
    (("core.study", "core.study.options", "core.study.command"), {"pandas", "numpy", *TRIALS}),
    (tuple(f"studies.{name}" for name in STUDIES), {"pandas", *TRIALS}),
    (("core.data.images", "analysis.gradcam", "analysis.studies.norms.sections",
      "analysis.studies.batch_size.sections", "analysis.studies.search.sections"),
     {"scipy.stats", "sklearn", "typst", "jinja2", *TRIALS}),
    (("core.study.driver", "core.cluster.session", "core.cluster.tune"), TORCH),
)  # fmt: skip


# --- the checks: each names what is wrong below a root ---


def sources(root: Path, *tops: str) -> list[Path]:
    return sorted(p for top in tops or (*MAY_KNOW, "tests") for p in (root / top).rglob("*.py"))


@functools.cache
def found_in(path: Path) -> list[ast.Import | ast.ImportFrom | ast.Call]:
    """Return the imports and calls of a file, also those within functions and for types alone."""
    kinds = ast.Import | ast.ImportFrom | ast.Call
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def module_of(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(root: Path, *tops: str) -> Iterator[tuple[str, str]]:
    """Yield (module, what it imports)."""
    known = {module_of(root, path) for path in sources(root, *(tops or MAY_KNOW))}
    for path in sources(root, *(tops or MAY_KNOW)):
        module = module_of(root, path)
        package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
        for node in found_in(path):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    yield module, source if source in known and whole not in known else whole


def crowded(root: Path) -> list[str]:
    """Return the folders with more than twelve Python files."""
    count = Counter(p.parent.relative_to(root) for p in sources(root) if p.stem != "__init__")
    return [f"{folder} holds {n} files" for folder, n in count.items() if n > 12]


def long(root: Path) -> list[str]:
    """Return the files of more than 500 lines; the studies' documents aside."""
    lines = {p.relative_to(root): p.read_text().count("\n") for p in sources(root)}
    document = Path("analysis/studies")
    return [f"{p} has {n} lines" for p, n in lines.items() if n > 500 and document not in p.parents]


def circles(root: Path) -> list[str]:
    """Return the groups of files that import each other, directly or by way of others."""
    knows: dict[str, set[str]] = {}
    for module, name in imports(root):
        knows.setdefault(module, set()).update({name} - {module})
    reach = {}
    for start in knows:
        seen, left = set(), [start]
        while left:
            new = knows.get(left.pop(), set()) - seen
            seen |= new
            left += new
        reach[start] = seen
    found = {tuple(sorted(o for o in reach[m] if m in reach.get(o, ()))) for m in reach}
    return [" <-> ".join(group) for group in sorted(found) if group]


def upward(root: Path) -> list[str]:
    """Return the imports against the order of the folders, or from one tower into the other."""
    found = []
    height = {name: -level for level, names in enumerate(STOREYS) for name in names}
    for module, name in imports(root):
        (top, here), (other, there) = (f"{m}.".split(".")[:2] for m in (module, name))
        right = other not in MAY_KNOW or other in MAY_KNOW[top]
        if other == top:
            towers = ({here, there} & MACHINE) and ({here, there} & SCIENCE)
            right = there in height and height.get(here, -99) > height[there] and not towers
            right |= top != "core" or not here or not there or here == there
        if not right:
            found.append(f"{module} imports {name}")
    return found


def tuners(root: Path) -> list[str]:
    """Return the modules that import ray.tune, beside the one that may."""
    found = {module for module, name in imports(root) if f"{name}.".startswith("ray.tune.")}
    return sorted(found - {"core.cluster.tune"})


def without_mirror(root: Path) -> list[str]:
    """Return folders of tests that mirror none, and rooms of core and analysis without tests."""
    tested = {p.parent.relative_to(root / "tests") for p in (root / "tests").rglob("test_*.py")}
    files = [*root.glob("core/*/*.py"), *root.glob("analysis/*/*.py")]
    rooms = {path.parent.relative_to(root) for path in files}
    alone = [f"tests/{room} mirrors no folder" for room in tested if not (root / room).is_dir()]
    return alone + [f"{room} has no tests" for room in rooms - tested]


CHECKS = {
    crowded: ({f"core/data/x{n}.py": "" for n in range(13)}, "core/data holds 13 files"),
    long: ({"analysis/results/x.py": "\n" * 501}, "analysis/results/x.py has 501 lines"),
    circles: (
        {
            "core/a.py": "from core import b",
            "core/b.py": "def f():\n    from core.c import x",
            "core/c.py": "if TYPE_CHECKING:\n    import core.a",
        },
        "core.a <-> core.b <-> core.c",
    ),
    without_mirror: ({"tests/core/attic/test_x.py": ""}, "tests/core/attic mirrors no folder"),
}
UPWARD = {
    "core/storage/x.py": "from core.study import main",
    "core/layers/x.py": "def f():\n    import core.data.images",
    "core/data/x.py": "if TYPE_CHECKING:\n    from core.models import weights",
    "core/errors.py": "from core import storage",
    "core/cluster/x.py": "from core.layers import norms",
    "core/generation/x.py": "from core import trial",
    "core/attic.py": "from core.attic2 import x",
    "trainables/x.py": "import analysis.browse",
    "core/study/x.py": "from trainables import birds",
    "analysis/results/x.py": "from ...studies import norms",
}


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        for folder in (root / name).parent, *(root / name).parent.parents:
            if root in folder.parents:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "__init__.py").touch()
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("check", [*CHECKS, upward, tuners], ids=lambda check: check.__name__)
def test_the_house_holds(check):
    assert check(ROOT) == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_fault_of_the_house_is_found(check, tmp_path):
    files, told = CHECKS[check]
    assert check(build(tmp_path, files)) == [told]


@pytest.mark.parametrize("name", UPWARD)
def test_an_import_against_the_order_is_found(name, tmp_path):
    others = ("core/attic2.py", "core/storage/files.py", "core/trial/api.py", "studies/norms.py")
    build(tmp_path, dict.fromkeys(others, ""))
    assert len(upward(build(tmp_path, {name: UPWARD[name]}))) == 1


def test_rooms_without_tests_and_all_who_import_tune_are_found(tmp_path):
    texts = ("import ray.tune.search", "from ray import tune", "def f():\n    import ray.tune as t")
    build(tmp_path, {f"core/cluster/x{n}.py": text for n, text in enumerate(texts)})
    build(tmp_path, {"core/study/x.py": "import ray\nfrom core import tune"})
    assert tuners(tmp_path) == [f"core.cluster.x{n}" for n in range(3)]
    assert set(without_mirror(tmp_path)) == {f"core/{n} has no tests" for n in ("cluster", "study")}


# --- what every package and study file holds ---


def test_what_is_imported_is_declared():
    """Nothing comes along with another package by luck."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours, known, asked = {"benchmarks", "tests", *MAY_KNOW}, packages_distributions(), set()
    for folders, words in (
        (tuple(MAY_KNOW), project["dependencies"]),
        (("benchmarks", "tests"), project["optional-dependencies"]["dev"]),
    ):
        asked |= {normalised(re.split(r"[\[<>=~! ;]", word)[0]) for word in words}
        found = {name.split(".")[0] for _, name in imports(ROOT, *folders)}
        for name in found - ours - sys.stdlib_module_names - REFERENCE:
            sources = {normalised(source) for source in known.get(name, [name])}
            assert sources & asked, f"{name} comes from {sources}, which pyproject.toml lacks"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("package", MAY_KNOW)
def test_packages_come_from_this_checkout(package):
    """Another distribution that installs a `core` would win over an editable install, silently."""
    assert importlib.import_module(package).__path__[0] == str(ROOT / package)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_reads_on_one_screen_documents_its_settings_and_can_be_planned(name):
    assert len((ROOT / "studies" / f"{name}.py").read_text().splitlines()) <= 80
    study = importlib.import_module(f"studies.{name}").study
    assert isinstance(study, Study) and study.name == name
    for field in dataclasses.fields(study.config):
        assert re.search(rf"^ +{field.name}: \S", study.config.__doc__, re.M), field.name
    for scale in ("demo", "full", "smoke"):
        planned = plan(study, scale, None, None, {})
        assert len({p.trial for p in planned.trials}) == len(planned.trials) > 0
        assert study.scales[scale].seeds >= 1


def test_what_only_declares_reads_and_counts_loads_nothing_heavy():
    """`--help` and the refusal of a wrong option come at once; a driver does without torch."""
    script = "import importlib, sys\nfor name in sys.argv[2:]:\n    importlib.import_module(name)\n"
    script += "    print(name, *sorted({*sys.argv[1].split()} & sys.modules.keys()))"
    heavy = set().union(*(forbidden for _, forbidden in LIGHT))
    names = [name for names, _ in LIGHT for name in names]
    shown = python("-c", script, " ".join(heavy), *names, check=True).stdout.splitlines()
    loaded = {name: set(found) for name, *found in map(str.split, shown)}
    assert list(loaded) == names and "ray" in loaded["core.cluster.tune"]
    for each, forbidden in LIGHT:
        assert not {name: loaded[name] & forbidden for name in each if loaded[name] & forbidden}


def test_help_loads_little_beside_tyro():
    """Each of these takes a good part of the time that Python and tyro take."""
    done = python("-X", "importtime", "studies/norms.py", "--help", check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tyro" in loaded
    assert not {"typeguard", "rich.console", "asyncio", "importlib.metadata", "numpy"} & loaded


@pytest.mark.parametrize("package", MAY_KNOW)
def test_nothing_from_a_file_is_unpickled(package):
    """A pickle from a data set or result folder could run code."""
    for path in sources(ROOT, package):
        for node in found_in(path):
            if not isinstance(node, ast.Call):
                assert "pickle" not in [a.name for a in node.names] or uses_no_load(path), path
                continue
            called, place = ast.unparse(node.func), f"{path}:{node.lineno}"
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load" or called.endswith(("load_state_dict_from_url", "hub.load")):
                assert keywords.get("weights_only") == "True", place
            assert keywords.get("allow_pickle") in (None, "False"), place


def uses_no_load(path: Path) -> bool:
    """Return whether a module that imports pickle needs it for the name of its error only."""
    words = re.findall(r"\bpickle\.(\w+)", path.read_text())
    return set(words) <= {"UnpicklingError"}
