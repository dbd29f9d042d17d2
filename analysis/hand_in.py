"""Pack a finished study for handing in: code, model, predictions, tables and report, as one zip.

    python analysis/hand_in.py results/voc/demo                     hand-in-voc-demo.zip
    python analysis/hand_in.py results/voc/demo --pages             with pages of the top 50
    LABTUNE_AUTHOR="Ada Lovelace, 123456" python studies/voc.py --report-only    first, for the name

Every path in it is relative, and the same files give the same bytes. What only this machine needs
stays out: the engine's own files, the note of where the images are, and the images.
"""

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from analysis.command import run
from analysis.document.provenance import relative
from analysis.document.report import each_text
from analysis.results.folder import UNREADABLE, load, private
from core.errors import UserError
from core.provenance import ROOT, git
from core.storage.files import read_json, write_bytes

_NEEDED = ("study.json", "trials.csv", "history.csv", "report.html", "report.pdf")
_FOLDERS = ("tables", "figures", "predictions", "checkpoints")
_PAGES = ("gradcam.html", "gradcam.pdf", "best_config.json", "search.json")  # where there are any
_PACKAGES = ("analysis", "core", "studies", "trainables")
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip can say: no time of packing in it
_PATH = re.compile(r"(?:[A-Za-z]:)?[/\\][^/\\\s]+[/\\]")
_README = """{question}

Study {study}, {name}.

code/           the code, {commit}
results/{study}/{name}/
                report.pdf and report.html, tables, figures, the scores of every image
                (predictions), the best model (checkpoints) and what was run (study.json)
requirements.txt
                the versions of the libraries
{pages}
To look again, with Python 3.11 or newer:

    pip install -r requirements.txt
    cd code && pip install -e .
    python studies/{study}.py --report-only --results-dir ../results --name {name}
    python analysis/browse.py ../results/{study}/{name} --data-dir PATH-OF-THE-IMAGES

All paths are relative to this folder, except the one root of the images, which --data-dir names.
"""


@dataclass(frozen=True)
class Options:
    """Pack a finished study for handing in.

    Attributes:
        results: its result folder.
        out: the zip; by default hand-in-<study>-<name>.zip here.
        pages: also pack pages with the top 50 and bottom 50 of each class.
        data_dir: root of the study's images, for --pages.
    """

    results: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RESULTS")]]
    out: Path | None = None
    pages: bool = False
    data_dir: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Pack as `argv` says; return 0, or 2 when something given cannot be used."""
    return run(pack, Options, __doc__, argv)


def pack(opts: Options) -> None:
    """Write the zip and say how many files it holds.

    Raises UserError: a folder without a report, or files that name places of this machine.
    """
    study = load(opts.results).study
    kind, name = str(study["study"]), opts.results.resolve().name
    files = {f"results/{kind}/{name}/{at}": data for at, data in _result_files(opts.results)}
    files |= {f"code/{at}": data for at, data in code_files()}
    if opts.pages:
        files |= {f"pages/{at}": data for at, data in _pages(opts)}
    files["README.txt"] = _readme(study["question"], kind, name, opts.pages).encode()
    files["requirements.txt"] = requirements().encode()
    check(files, _places(opts.results))
    out = opts.out or Path(f"hand-in-{kind}-{name}.zip")
    write_bytes(out, zipped(files, f"hand-in-{kind}-{name}"))
    print(f"hand-in: {out} ({len(files)} files, {out.stat().st_size / 2**20:.1f} MiB)")


def _readme(question: str, study: str, name: str, with_pages: bool) -> str:
    version = git()
    commit = f"commit {version['commit']}" if version["commit"] else "not from a git checkout"
    commit += " with uncommitted changes" if version["dirty"] else ""
    pages = "pages/index.html\n                the top 50 and bottom 50 of each class\n"
    pages = pages if with_pages else ""
    return _README.format(question=question, study=study, name=name, commit=commit, pages=pages)


def _result_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what a reader needs of a result folder, texts without absolute paths."""
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing: make the report first, by the study's --report-only"
            )
    imported = read_json(folder / "study.json").get("scale") == "imported"
    if not imported and not (folder / "checkpoints" / "best.pt").is_file():
        raise UserError(
            f"{folder}/checkpoints holds no model: copy best.pt of the best trial there"
        )
    wanted = [folder / name for name in (*_NEEDED, *_PAGES)]
    wanted += [path for sub in _FOLDERS for path in sorted((folder / sub).rglob("*"))]
    for path in wanted:
        if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix(), _without_places(path)


def _without_places(path: Path) -> bytes:
    if path.name == "study.json":
        return (json.dumps(each_text(read_json(path), relative), indent=1) + "\n").encode()
    if path.name == "trials.csv":  # reasons of failures may name files
        return relative(path.read_bytes().decode("utf-8")).encode()
    return path.read_bytes()


def code_files() -> Iterator[tuple[str, bytes]]:
    """Yield the files of this checkout: all that git does not ignore, or the four packages."""
    listed = _git_files()
    if listed is None:
        listed = [
            path.relative_to(ROOT).as_posix()
            for package in _PACKAGES
            for path in sorted((ROOT / package).rglob("*"))
            if "__pycache__" not in path.parts
        ]
        listed += ["pyproject.toml", "README.md", "LICENSE", "constraints.txt"]
    for name in sorted(listed):
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and not name.startswith("."):
            yield name, path.read_bytes()


def _git_files() -> list[str] | None:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run([*command, "--exclude-standard"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode().split("\0")[:-1] if done.returncode == 0 else None


def requirements() -> str:
    """Return the libraries that labtune needs, at the versions that are installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = []
    for needed in declared["project"]["dependencies"]:
        name = re.split(r"[\[<>=!~; ]", needed, maxsplit=1)[0]
        extras = re.search(r"\[.*?\]", needed)
        version = importlib.metadata.version(name).partition("+")[0]
        lines.append(f"{name}{extras[0] if extras else ''}=={version}")
    return "\n".join(lines) + "\n"


def _pages(opts: Options) -> Iterator[tuple[str, bytes]]:
    from analysis.browse import export
    from analysis.browser.page import Shown
    from analysis.results.pictures import find_root

    results = load(opts.results)
    shown = Shown(results, find_root(results, opts.data_dir))
    with tempfile.TemporaryDirectory(prefix="labtune-pages-") as made:
        export(shown, Path(made))
        for path in sorted(Path(made).rglob("*")):
            if path.is_file():
                yield path.relative_to(made).as_posix(), path.read_bytes()


def check(files: Mapping[str, bytes], places: Sequence[str]) -> None:
    """Refuse files that name one of `places` of this machine, or images by an absolute path.

    Raises UserError: such a file; the message names it and what it holds.
    """
    for name, data in files.items():
        for place in places:
            if re.search(re.escape(place.encode()) + rb"(?![\w.-])", data):
                raise UserError(
                    f"{name} names {place}, a folder of this machine: make the report again, or "
                    "take that file out of the result folder"
                )
        if name.endswith(".npz"):
            _check_arrays(name, data, places)


def _check_arrays(name: str, data: bytes, places: Sequence[str]) -> None:
    """Refuse predictions whose file names or settings are absolute."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            texts = [stored[key] for key in stored.files if stored[key].dtype.kind == "U"]
    except UNREADABLE as e:
        raise UserError(f"{name} cannot be read ({type(e).__name__}): restore it") from e
    for words in (str(text) for found in texts for text in found.ravel().tolist()):
        if _PATH.match(words) or any(place in words for place in places):
            raise UserError(
                f"{name} names {words[:80]}: only paths relative to the data root can be handed in"
            )


def _places(folder: Path) -> list[str]:
    """Return the folders of this machine that no file may name."""
    known = {ROOT, Path.cwd(), Path(os.path.expanduser("~")), folder.resolve()}
    values = private(folder).values()
    known |= {Path(value) for value in values if isinstance(value, str) and value[:1] == "/"}
    # /root or /tmp alone are words that code may well contain.
    return sorted(str(path) for path in known if len(path.parts) > 2)


def zipped(files: Mapping[str, bytes], top: str) -> bytes:
    """Return a zip of `files` below the folder `top`: the same files, the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{top}/{name}", _EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
