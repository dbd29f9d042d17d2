"""The picture of the house in docs/architecture.md, drawn from the imports of the code.

python docs/picture.py            write it anew
python docs/picture.py --check    fail when it is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
TOPS = ("studies", "trainables", "analysis", "core")
START, END = "<!-- picture: made by docs/picture.py -->\n", "<!-- end of picture -->\n"


def rooms() -> dict[str, str]:
    """Return the folders that hold code, as packages, and what each says of itself."""
    found = {}
    for top in TOPS:
        found[top] = _says(ROOT / top / "__init__.py")
        if top in ("analysis", "core"):
            inner = sorted(p.parent for p in (ROOT / top).glob("*/__init__.py"))
            found |= {f"{top}.{folder.name}": _says(folder / "__init__.py") for folder in inner}
    alone = sorted((ROOT / "core").glob("[a-z]*.py"))  # rooms of one file
    return found | {f"core.{path.stem}": _says(path) for path in alone}


def arrows(known: dict[str, str]) -> dict[str, set[str]]:
    """Return, for each room, the other rooms that its files import from."""
    knows: dict[str, set[str]] = {room: set() for room in known}
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            here = _room(".".join(path.relative_to(ROOT).with_suffix("").parts), known)
            for node in ast.walk(ast.parse(path.read_text())):
                for name in _imported(node):
                    if name.split(".")[0] in TOPS:
                        knows[here] |= {_room(name, known)} - {here}
    return knows


def reduced(knows: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows without those that longer ways say already."""
    far = {room: set(others) for room, others in knows.items()}
    for _ in knows:  # until nothing is further away
        far = {
            room: others.union(*(far[other] for other in others)) for room, others in far.items()
        }
    circle = [room for room in far if room in far[room]]
    if circle:
        raise SystemExit(f"these import each other in a circle: {', '.join(circle)}")
    return [
        (room, other)
        for room in knows
        for other in sorted(knows[room])
        if not any(other in far[between] for between in knows[room])
    ]


def picture() -> str:
    """Return the picture as a Mermaid flowchart in a block of Markdown."""
    known = rooms()
    lines = ["```mermaid", "flowchart TB"]
    for room, says in known.items():
        lines.append(f'    {room}["<b>{room.replace(".", "/")}</b><br>{says}"]')
    lines += [f"    {room} --> {other}" for room, other in reduced(arrows(known))]
    return "\n".join([*lines, "```", ""])


def main() -> int:
    """Write the picture, or say that it is out of date."""
    text = PAGE.read_text()
    before, _, rest = text.partition(START)
    made = before + START + picture() + END + rest.partition(END)[2]
    if "--check" not in sys.argv:
        PAGE.write_text(made)
    elif made != text:
        print("docs/architecture.md: the picture is out of date: python docs/picture.py")
        return 1
    return 0


def _says(path: Path) -> str:
    """Return the first clause of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.split(r"[.:;]", text)[0].replace('"', "'").replace("\n", " ")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _room(module: str, known: dict[str, str]) -> str:
    """Return the innermost room that a module, or a name in it, lies in."""
    parts = module.split(".")
    return next(r for n in (2, 1) if (r := ".".join(parts[:n])) in known)


if __name__ == "__main__":
    sys.exit(main())
