"""A bird's outline as coloured polygons, in its own coordinates."""

from __future__ import annotations

import numpy as np

from core.data.synthetic.species import Band, Species

Shape = tuple[np.ndarray, str]  # polygon (points, 2) in body lengths, colour


_T = np.linspace(0, 2 * np.pi, 20, endpoint=False)
CIRCLE = np.stack([np.cos(_T), np.sin(_T)], axis=1)


def _egg(a: float, b: float, taper: float = 0.0) -> np.ndarray:
    """Outline (20, 2) of an egg with semi-axes a, b; positive taper makes the front fuller."""
    egg = CIRCLE * (a, b)
    egg[:, 1] *= 1 + taper * CIRCLE[:, 0]
    return egg


def _ellipse(at: tuple[float, float], a: float, b: float) -> np.ndarray:
    """Outline (20, 2) of an ellipse around `at`."""
    return np.add(_egg(a, b), at)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate points (n, 2) anticlockwise about the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def _banded(outline: np.ndarray, colour: str, bands: tuple[Band, ...]) -> list[Shape]:
    """A part and its bands; the outline must be convex, so that a cut is a projection."""
    shapes: list[Shape] = [(outline, colour)]
    for degrees, low, high, band_colour in bands:
        axis = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        along = outline @ axis
        middle, half = (along.max() + along.min()) / 2, np.ptp(along) / 2
        cut = np.clip(along, middle + low * half, middle + high * half)
        shapes.append((outline + (cut - along)[:, None] * axis, band_colour))
    return shapes


def _moved(shapes: list[Shape], degrees: float, offset: tuple[float, float]) -> list[Shape]:
    """Turn shapes about the origin, then shift them."""
    return [(turned(points, degrees) + offset, colour) for points, colour in shapes]


def _tail(sp: Species) -> list[Shape]:
    width, length = sp.tail_width / 2, sp.tail_length
    if sp.train:
        return _train(length * 2.2)
    outline = np.array(
        [(0.1, width), (-length, width * 1.25), (-length, -width * 1.25), (0.1, -width)]
    )
    return _banded(outline, sp.tail, sp.tail_bands)


def _train(length: float) -> list[Shape]:
    """A peacock's train, folded: a long green wedge with eyespots."""
    wedge = np.array(
        [(0.1, 0.15), (-length, 0.3), (-length * 1.08, 0), (-length, -0.3), (0.1, -0.15)]
    )
    shapes: list[Shape] = [(wedge, "2f7a3c"), (wedge * (0.97, 0.6), "4f9a3a")]
    for row, x in enumerate(np.linspace(-0.3, -0.97, 5) * length):
        for y in np.linspace(-0.2, 0.2, 2 + row % 2) * (0.6 - x * 0.6):
            shapes.append((_ellipse((x, y), 0.075, 0.06), "c8a03c"))
            shapes.append((_ellipse((x, y), 0.045, 0.035), "1846b8"))
    return shapes


def _beak(sp: Species) -> list[Shape]:
    """Beak along +x from the origin, bent down quadratically."""
    x = np.linspace(0, 1, 6)
    middle = -sp.beak_curve * x**2
    half = sp.beak_depth / 2 * (1 - x) ** 0.8
    upper = np.stack([x * sp.beak_length, middle + half], axis=1)
    lower = np.stack([x * sp.beak_length, middle - half], axis=1)
    return [(np.concatenate([upper, lower[::-1]]), sp.beak)]


def _crest(sp: Species) -> list[Shape]:
    """Crest on a head of radius 1 at the origin."""
    inner, outer = sp.crest_colours
    if sp.crest == "fan":  # raised feathers, each tipped
        feather = np.array([(0.5, -0.2), (2.3, -0.3), (2.6, 0), (2.3, 0.3), (0.5, 0.2)])
        return [
            shape
            for angle in (75, 97, 119, 141, 163)
            for shape in _banded(turned(feather, angle), inner, ((angle, 0.62, 1, outer),))
        ]
    if sp.crest == "wisp":
        wisp = np.array([(0.2, 0.7), (-1.4, 1.5), (-2.6, 2.6), (-1.2, 1.1), (-0.6, 0.4)])
        return [(wisp, outer)]
    if sp.crest == "tuft":  # bare shafts with a fan of tips
        shaft = np.array([(0.6, -0.1), (2.6, -0.1), (2.6, 0.1), (0.6, 0.1)])
        raised = [(shaft, inner), (_ellipse((2.8, 0), 0.4, 0.32), outer)]
        return [s for angle in (80, 98, 116, 134) for s in _moved(raised, angle, (0, 0))]
    if sp.crest == "casque":
        return [(np.array([(0.1, 0.5), (0.6, 1.35), (2.0, 0.75), (2.3, 0.1), (0.9, 0.3)]), outer)]
    return []


def _head(sp: Species, nod: float) -> list[Shape]:
    """Head at the origin with crest, beak and eye, turned by `nod` degrees."""
    r = sp.head_size
    beak = _moved(_beak(sp), 0, (r * 0.82, -0.05 * r))
    crest = [(points * r, colour) for points, colour in _crest(sp)]
    eye_at = (0.32 * r, 0.18 * r)
    eye: list[Shape] = [(_ellipse(eye_at, 0.2 * r, 0.2 * r), sp.eye)]
    if sp.eye_ring:
        eye.insert(0, (_ellipse(eye_at, 0.42 * r, 0.36 * r), sp.eye_ring))
    skull = _banded(_egg(r * 1.08, r), sp.head, sp.head_bands)
    front, behind = (crest, []) if sp.crest == "casque" else ([], crest)
    return _moved([*behind, *beak, *skull, *front, *eye], nod, (0.0, 0.0))


def _leg(sp: Species, x: float, stride: float) -> list[Shape]:
    width, length = 0.022, sp.leg_length
    top, foot = (x, 0.0), (x + stride, -sp.depth / 2 - length)
    shin = [(top[0] - width, 0), (top[0] + width, 0), (foot[0] + width, foot[1]),
            (foot[0] - width, foot[1])]  # fmt: skip
    toes = [(foot[0] - 0.06, foot[1] - 0.02), (foot[0] + 0.12, foot[1] - 0.03), foot]
    return [(np.array(shin), sp.legs), (np.array(toes), sp.legs)]


def pose(sp: Species, rng: np.random.Generator) -> list[Shape]:
    """All shapes of one bird facing right, back to front, in body lengths (y up)."""
    tilt = sp.tilt + rng.uniform(-9, 9)
    half = sp.depth / 2
    body = _banded(_egg(0.5, half, 0.18), sp.body, sp.body_bands)
    tail = _moved(_tail(sp), sp.tail_angle + rng.uniform(-10, 10), (-0.44, 0.02))
    wing = _banded(_egg(0.42, half * 0.6, 0.35), sp.wing, sp.wing_bands)
    raised = rng.uniform(-6, 10) if rng.random() < 0.85 else rng.uniform(-50, -25)
    wing = _moved(wing, raised, (-0.12, half * 0.18))
    shoulder = turned(np.array([[0.36, half * 0.3]]), tilt)[0]
    reach = sp.neck * rng.uniform(0.8, 1.1)
    lean = np.radians(rng.uniform(50, 85))
    along = (0.08 + reach * np.cos(lean), sp.head_size * 0.6 + reach * np.sin(lean))
    head_at = np.add(shoulder, along)
    strides = zip((0.04, -0.06), rng.uniform(-0.08, 0.08, 2), strict=True)
    return [
        *(part for x, stride in strides for part in _leg(sp, x, stride)),
        *_moved([*tail, *body], tilt, (0, 0)),
        *_neck(sp, shoulder, head_at),
        *((points + head_at, colour) for points, colour in _head(sp, rng.uniform(-15, 15))),
        *_moved(wing, tilt, (0, 0)),
    ]


def _neck(sp: Species, shoulder: np.ndarray, head_at: np.ndarray) -> list[Shape]:
    """A tapered neck from the body to the head: below in the body's colour, above in the head's."""
    if not sp.neck:
        return []
    direction = head_at - shoulder
    side = np.array([-direction[1], direction[0]]) / np.linalg.norm(direction)
    base, top = sp.depth * 0.36, sp.head_size * 0.7
    places = (shoulder, base), ((shoulder + head_at) / 2, (base + top) / 2.4), (head_at, top)
    left, right = ([at + way * side * w for at, w in places] for way in (1, -1))
    lower, upper = [*left[:2], *right[1::-1]], [*left[1:], *right[:0:-1]]
    front = sp.body_bands[0][3] if sp.body_bands and sp.body_bands[0][0] < 90 else sp.body
    return [(np.array(lower), front), (np.array(upper), sp.head)]
