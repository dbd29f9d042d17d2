"""Which objects the annotations of a devkit name, and how VOC's files spell them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from core.data import folders
from core.data.spelling import Files, composed, lines_of
from core.errors import UserError, some

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_LARGEST_XML = 1 << 20  # bytes; the largest of VOC 2012 has 15 thousand
FLAGS = dict.fromkeys(("", "0", "0.0", "false", "no", "n", "none", "unspecified"), False)
FLAGS |= dict.fromkeys(("1", "1.0", "true", "yes", "y"), True)
_NO_CLASSES = ("background", "__background__", "_background_")  # as converters list them
_MOSTLY = 10  # so many of the 20 names make a data set VOC's, in which others are mistakes


class Object(NamedTuple):
    """An object of an annotation."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # (xmin, ymin, xmax, ymax) in pixels of the file
    difficult: bool  # marked so
    turned: bool  # its corners stood the wrong way round


def read_annotations(
    folder: Path, names: Sequence[str], listed: Mapping[str, set[str]]
) -> tuple[dict[str, list[Object]], dict[str, str], list[str]]:
    """Return the objects of each image, what is wrong with others' annotations, and notes.

    An image without annotation shows nothing, unless a class's list says that it does. Raises
    UserError: no image has an annotation.
    """
    files = Files(folder / "Annotations", (".xml",))
    shown = set().union(*listed.values())
    found, broken = dict[str, list[Object]](), dict[str, str]()
    turned: list[str] = []
    for name in names:
        stem = files.stem(name)
        path = folder / "Annotations" / (f"{name}.xml" if stem is None else files.entry(stem).name)
        try:
            if stem is None and name in shown:
                raise ValueError("missing, though the list of a class says what the image shows")
            found[name] = [] if stem is None else _annotation(path)
        except ValueError as e:
            broken[name] = f"{path} ({e})"
        turned += [path.name for o in found.get(name, ()) if o.turned]
    bare = [name for name in found if files.stem(name) is None]
    if len(bare) == len(names):
        raise UserError(f"{folder}/Annotations: no annotation of any listed image in it")
    return found, broken, _notes(bare, turned, len(names))


def _notes(bare: Sequence[str], turned: Sequence[str], images: int) -> list[str]:
    """Say which images have no annotation, and which annotations a box that was turned round."""
    notes = []
    if bare:
        notes.append(
            f"images without annotation count as showing none of the classes: {len(bare):,} of"
            f" {images:,} ({some(bare, 3)})"
        )
    if turned:
        notes.append(
            f"boxes that ended before they started were turned round: {len(turned):,}"
            f" ({some(list(dict.fromkeys(turned)), 3)})"
        )
    return notes


def _annotation(path: Path) -> list[Object]:
    """Return the objects of an annotation; a ValueError says what is wrong with it."""
    try:
        if path.stat().st_size > _LARGEST_XML:
            raise ValueError("larger than 1 MB")
        content = path.read_bytes()
        if not content.strip():
            raise ValueError("empty")
        tree = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as e:
        raise ValueError("it defines a DOCTYPE or entities, which is refused") from e
    except ParseError as e:
        raise ValueError(f"no whole XML: {e}") from e
    except (OSError, LookupError) as e:  # a link to nowhere; an encoding that nobody knows
        raise ValueError(getattr(e, "strerror", None) or str(e)) from e
    if tree.tag != "annotation":
        raise ValueError(f"its element is {tree.tag[:40]}, not annotation")
    return [_object(node) for node in tree.findall("object")]


def _object(node: Element) -> Object:
    """Read an object; `difficult` may be left out, as some labelling programs do."""
    name = composed((node.findtext("name") or "").strip())
    if not name:
        raise ValueError("an object without a name")
    flag = (node.findtext("difficult") or "").strip()
    difficult = FLAGS.get(flag.lower())
    if difficult is None:
        raise ValueError(f"{name}: difficult is {flag[:20]}, not 0 or 1")
    sides = [_side(node, name, side) for side in ("xmin", "ymin", "xmax", "ymax")]
    (left, right), (top, bottom) = sorted(sides[::2]), sorted(sides[1::2])
    box = (left, top, right, bottom)
    return Object(name, box, difficult, list(box) != sides)


def _side(node: Element, name: str, side: str) -> float:
    text = node.findtext(f"bndbox/{side}")
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text or "")):
            return value
    raise ValueError(f"{name}: bndbox/{side} is {'missing' if text is None else 'no number'}")


def classes_of(
    root: Path, folder: Path, found: Mapping[str, Sequence[Object]], listed: Mapping[str, set[str]]
) -> tuple[tuple[str, ...], bool, list[str]]:
    """Return the names of the classes, whether they are the data set's own, and notes.

    They are those of `classes.txt` in the root or the year's folder; or else those that have lists
    (cat_train.txt and cat_val.txt); or else VOC's, if these are all that occur or most of them do;
    or else those that occur, sorted. A background that no object is called is no class. Raises
    UserError: no class, or one twice.
    """
    first: dict[str, str] = {}  # class -> where it occurs
    for image, objects in found.items():
        for obj in objects:
            first.setdefault(obj.name, f"{folder}/Annotations/{image}.xml ({obj.name})")
    names = _own_list(root / "classes.txt") or _own_list(folder / "classes.txt") or list(listed)
    empty = [name for name in names if name.lower() in _NO_CLASSES and name not in first]
    names = [name for name in names if name not in empty]
    if not names:
        is_voc = first.keys() <= set(VOC_CLASSES) or len(first.keys() & VOC_CLASSES) >= _MOSTLY
        names = list(VOC_CLASSES) if is_voc else sorted(first)
    if (same := folders.twins(names)) is not None:
        raise UserError(folders.twins_sentence(*(first.get(name, name) for name in same)))
    notes = [f"{some(empty)} is listed as a class, but no object is called so: it is none"]
    return tuple(names), set(names) != set(VOC_CLASSES), notes if empty else []


def _own_list(path: Path) -> list[str]:
    """Return the classes that a file lists, each once; none where there is no such file."""
    names = [composed(line) for line in lines_of(path)] if path.exists() else []
    if path.exists() and len(set(names)) < max(1, len(names)):
        raise UserError(f"{path}: list each class once, a name a line")
    return names
