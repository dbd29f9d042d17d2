"""How the files of a devkit spell the names of images and classes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.data import folders
from core.errors import UserError, some


class Files:
    """The files of a folder by their names without ending, in either Unicode form.

    Of several files with one name a .jpg counts, or else the first in the alphabet.
    """

    def __init__(self, folder: Path, endings: Sequence[str]):
        self._by_stem: dict[str, list[os.DirEntry[str]]] = {}
        self._other: dict[str, str] = {}
        for entry in os.scandir(folder):
            stem, ending = os.path.splitext(entry.name)
            if folders.is_junk(entry.name) or entry.is_dir():
                continue
            if ending.lower() in endings:
                self._by_stem.setdefault(stem, []).append(entry)
            else:
                self._other |= {stem: entry.name, entry.name: entry.name}
        for entries in self._by_stem.values():
            entries.sort(key=lambda e: (not e.name.lower().endswith((".jpg", ".jpeg")), e.name))
        self._composed = {composed(stem): stem for stem in self._by_stem}

    def stem(self, name: str) -> str | None:
        """Return the file name without ending that `name` means, None if there is none."""
        return name if name in self._by_stem else self._composed.get(composed(name))

    def entry(self, stem: str) -> os.DirEntry[str]:
        """Return the file that counts."""
        return self._by_stem[stem][0]

    def told(self, name: str) -> str:
        """Return a name that has no file, with the file that has it but for the ending."""
        other = self._other.get(name)
        return name if other is None else f"{name} (there is {other}, no image by its ending)"

    def several(self, stems: Iterable[str]) -> list[str]:
        """Say which of the names have several files."""
        rivals = [[e.name for e in self._by_stem[stem]] for stem in stems]
        told = [f"{names[0]} (not {', '.join(names[1:])})" for names in rivals if len(names) > 1]
        return [f"of several files with one name counts: {some(told, 3)}"] if told else []


def composed(name: str) -> str:
    """Return a name in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file that hold something."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: list its images there, a name a line") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read as text ({e}): save it in UTF-8") from e
    return [line.strip() for line in text.splitlines() if line.strip()]
