"""What is imported is declared: nothing comes along with another package by luck."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.conftest import ROOT

OURS = {"analysis", "benchmarks", "core", "studies", "tests", "trainables"}
# Only benchmarks/reference_corruptions.py, which says how to install them for itself.
REFERENCE = {"cv2", "imagecorruptions", "skimage"}


def imported(*folders: str) -> set[str]:
    """Return the top-level names that the files of these folders import from outside."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found - OURS - sys.stdlib_module_names


def declared(*extras: str) -> set[str]:
    """Return the names of the distributions that pyproject.toml asks for, normalised."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = [
        *project["dependencies"],
        *(w for e in extras for w in project["optional-dependencies"][e]),
    ]
    return {normalised(re.split(r"[\[<>=~! ;]", word)[0]) for word in words}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("analysis", "core", "studies", "trainables"), ()),
        (("benchmarks", "tests"), ("dev",)),
    ],
)
def test_what_is_imported_is_declared(folders, extras):
    known, asked = packages_distributions(), declared(*extras)
    for name in imported(*folders) - REFERENCE:
        sources = {normalised(source) for source in known.get(name, [name])}
        assert sources & asked, f"{name} comes from {sources}, which pyproject.toml does not name"
