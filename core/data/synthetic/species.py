"""The ten species of the synthetic birds: colours, shapes and what covers them."""

from __future__ import annotations

from dataclasses import dataclass

Band = tuple[float, float, float, str]  # direction in degrees, from, to (-1..1), colour


@dataclass(frozen=True)
class Species:
    """Plumage and silhouette of one species; lengths in body lengths, angles in degrees.

    Bands lie across a part: (direction, from, to, colour) colours the points whose coordinate along
    `direction` (0 = towards the beak, 90 = up) is between `from` and `to`, where -1 and 1 are the
    part's own ends.
    """

    name: str
    body: str
    head: str
    wing: str
    tail: str
    beak: str
    legs: str
    body_bands: tuple[Band, ...] = ()
    head_bands: tuple[Band, ...] = ()
    wing_bands: tuple[Band, ...] = ()
    tail_bands: tuple[Band, ...] = ()
    eye: str = "101010"
    eye_ring: str = ""
    depth: float = 0.56  # height of the body over its length
    tilt: float = 20  # of the body axis above the horizontal
    neck: float = 0.0
    head_size: float = 0.19  # radius
    beak_length: float = 0.2
    beak_depth: float = 0.09
    beak_curve: float = 0.0  # how far the tip is bent down
    leg_length: float = 0.25
    tail_length: float = 0.45
    tail_width: float = 0.16
    tail_angle: float = 0.0  # against the body axis
    crest: str = ""  # fan | wisp | tuft | casque
    crest_colours: tuple[str, str] = ("101010", "101010")
    train: bool = False  # a peacock's


SPECIES = (
    Species(
        "Asian Green Bee-Eater", body="4fb02c", head="58b52e", wing="3f9a2a", tail="3a8a30",
        beak="151515", legs="3a3030", depth=0.42, tilt=40, beak_length=0.34, beak_depth=0.06,
        beak_curve=0.08, leg_length=0.12, tail_length=0.85, tail_width=0.09,
        body_bands=((0, 0.5, 0.62, "101418"),),
        head_bands=((90, 0.35, 1, "d9902a"), (-70, 0.35, 1, "35b5c0"), (90, -0.05, 0.25, "101010")),
        wing_bands=((180, 0.55, 1, "b5772a"),),
    ),
    Species(
        "Brown-Headed Barbet", body="3fa32d", head="8a6a4a", wing="2f8f22", tail="2a7a3a",
        beak="e0602a", legs="c9a04a", depth=0.62, tilt=45, head_size=0.24, beak_length=0.27,
        beak_depth=0.19, leg_length=0.12, tail_length=0.3, tail_width=0.2,
        body_bands=((0, 0.15, 1, "9a7a58"), (0, 0.35, 0.45, "cbb594"), (0, 0.6, 0.68, "cbb594")),
        eye_ring="f08a24", eye="3a1a10",
    ),
    Species(
        "Cattle Egret", body="fbfaf6", head="f6efe0", wing="fbfaf6", tail="f2f0ea", beak="f0a41a",
        legs="4a4a38", depth=0.44, tilt=25, neck=0.62, head_size=0.14, beak_length=0.32,
        beak_depth=0.09, leg_length=0.62, tail_length=0.18, tail_width=0.2,
        body_bands=((20, 0.6, 1, "f4c888"),), head_bands=((110, 0.1, 1, "eaa85a"),),
    ),
    Species(
        "Common Kingfisher", body="e8792a", head="2478c8", wing="1f86d0", tail="1a62b0",
        beak="181818", legs="d8402a", depth=0.56, tilt=50, head_size=0.25, beak_length=0.5,
        beak_depth=0.09, leg_length=0.08, tail_length=0.2, tail_width=0.18,
        body_bands=((110, 0.35, 1, "38b8ec"),),
        head_bands=((-90, 0.45, 1, "f6f2ea"), (-90, -0.1, 0.3, "e8792a"), (180, 0.62, 1, "f6f2ea")),
        wing_bands=((0, 0.6, 1, "2c9ade"),),
    ),
    Species(
        "Common Myna", body="84502f", head="17130f", wing="6b4026", tail="18120e", beak="f4c21c",
        legs="f2c01e", depth=0.56, tilt=25, head_size=0.2, beak_length=0.2, leg_length=0.36,
        tail_length=0.36, tail_width=0.2,
        body_bands=((0, 0.62, 1, "2a1e16"), (-120, 0.6, 1, "ece4d8")),
        wing_bands=((180, 0.25, 0.5, "ffffff"), (180, 0.5, 1, "1c1410")),
        tail_bands=((180, 0.65, 1, "ffffff"),), eye_ring="f6cc20", eye="70401c",
    ),
    Species(
        "Common Rosefinch", body="d8405a", head="cc1f3c", wing="7c5446", tail="6a4a40",
        beak="6e5a50", legs="7a5a4c", depth=0.6, tilt=35, head_size=0.22, beak_length=0.15,
        beak_depth=0.16, leg_length=0.2, tail_length=0.42, tail_width=0.15,
        body_bands=((-120, 0.1, 1, "f0d6d4"),), wing_bands=((180, -0.2, -0.05, "e8b4ac"),),
    ),
    Species(
        "Common Tailorbird", body="efe6cc", head="c0501e", wing="93a83a", tail="8a9a38",
        beak="7a5a44", legs="dca070", depth=0.6, tilt=28, head_size=0.23, beak_length=0.28,
        beak_depth=0.06, leg_length=0.42, tail_length=0.62, tail_width=0.1, tail_angle=-75,
        body_bands=((100, 0.3, 1, "9cae3e"),), head_bands=((-80, 0.05, 1, "efe6cc"),),
    ),
    Species(
        "Coppersmith Barbet", body="cfe0a0", head="2c7c2a", wing="3c9a2e", tail="2e7c34",
        beak="141414", legs="d84028", depth=0.7, tilt=52, head_size=0.27, beak_length=0.17,
        beak_depth=0.14, leg_length=0.1, tail_length=0.18, tail_width=0.18,
        body_bands=((0, 0.42, 0.66, "d81e24"), (0, 0.66, 1, "f6d424"), (-90, 0.0, 0.14, "4f8a3c"),
                    (-90, 0.34, 0.48, "4f8a3c")),
        head_bands=((0, 0.55, 1, "d81e24"), (-90, 0.4, 1, "f6d424"), (-90, 0.12, 0.4, "141414")),
        eye_ring="f8dc30",
    ),
    Species(
        "Forest Wagtail", body="f4ecd6", head="8c7c5a", wing="2c2822", tail="3a342c", beak="8a6a5a",
        legs="e8a890", depth=0.46, tilt=12, head_size=0.18, beak_length=0.17, beak_depth=0.06,
        leg_length=0.3, tail_length=0.72, tail_width=0.1,
        body_bands=((90, 0.35, 1, "8c7c5a"), (0, 0.42, 0.54, "1c1814"), (0, 0.68, 0.82, "1c1814")),
        head_bands=((90, 0.2, 0.42, "f6f0e0"), (-90, 0.3, 1, "f6f0e0")),
        wing_bands=((180, -0.5, -0.25, "f4e8a8"), (180, 0.1, 0.35, "f4e8a8")),
    ),
    Species(
        "Gray Wagtail", body="f8e02c", head="74828e", wing="5a6670", tail="1c1e20", beak="2a2a2a",
        legs="8a7068", depth=0.44, tilt=10, head_size=0.17, beak_length=0.17, beak_depth=0.05,
        leg_length=0.3, tail_length=0.95, tail_width=0.11,
        body_bands=((90, 0.25, 1, "74828e"),),
        head_bands=((90, 0.15, 0.38, "f4f4f0"), (-80, 0.4, 1, "141414")),
    ),
    Species(
        "Hoopoe", body="e8a468", head="eaa262", wing="161310", tail="161310", beak="3c342e",
        legs="6a5a50", depth=0.46, tilt=18, head_size=0.17, beak_length=0.5, beak_depth=0.06,
        beak_curve=0.14, leg_length=0.22, tail_length=0.45, tail_width=0.17, crest="fan",
        crest_colours=("eb9a50", "141210"), body_bands=((-150, 0.5, 1, "f6ece0"),),
        wing_bands=((180, -0.65, -0.4, "fbf6ee"), (180, -0.12, 0.12, "fbf6ee"),
                    (180, 0.38, 0.6, "fbf6ee")),
        tail_bands=((180, 0.0, 0.35, "fbf6ee"),),
    ),
    Species(
        "House Crow", body="3a3a40", head="0d0d10", wing="111118", tail="0e0e14", beak="0c0c0c",
        legs="141414", depth=0.52, tilt=22, head_size=0.2, beak_length=0.3, beak_depth=0.14,
        beak_curve=0.04, leg_length=0.36, tail_length=0.46, tail_width=0.2,
        body_bands=((25, 0.3, 1, "9c9a9c"), (-120, 0.3, 1, "222228")),
        head_bands=((180, 0.35, 1, "9c9a9c"),),
    ),
    Species(
        "Indian Grey Hornbill", body="a8a49c", head="a29c92", wing="88847c", tail="86827c",
        beak="dcb04c", legs="5a5650", depth=0.46, tilt=42, head_size=0.2, beak_length=0.5,
        beak_depth=0.2, beak_curve=0.2, leg_length=0.14, tail_length=0.85, tail_width=0.17,
        crest="casque", crest_colours=("1c1a18", "1c1a18"), body_bands=((-90, 0.3, 1, "dedad2"),),
        tail_bands=((180, 0.45, 0.72, "1e1c1a"), (180, 0.72, 1, "f6f4f0")),
        head_bands=((-90, -0.1, 0.5, "5c5852"),), eye="b02818",
    ),
    Species(
        "Indian Peacock", body="1a4fc0", head="1846c8", wing="cbb48c", tail="2f8a4a", beak="8a8478",
        legs="8a8070", depth=0.5, tilt=28, neck=0.55, head_size=0.12, beak_length=0.12,
        leg_length=0.42, tail_length=0.5, tail_width=0.34, crest="tuft", train=True,
        crest_colours=("1c3f9a", "2a6ad8"), body_bands=((180, 0.35, 1, "1f8a5a"),),
        head_bands=((90, -0.15, 0.25, "f6f6f4"),),
        wing_bands=((180, -0.5, -0.3, "50402c"), (180, -0.05, 0.15, "50402c"),
                    (180, 0.45, 1, "b4642c")),
    ),
    Species(
        "Indian Pitta", body="ecc27a", head="c98a3c", wing="2f9a5c", tail="1a2a30", beak="b07a5c",
        legs="e8a890", depth=0.62, tilt=38, head_size=0.23, beak_length=0.22, beak_depth=0.1,
        leg_length=0.36, tail_length=0.14, tail_width=0.16,
        body_bands=((-140, 0.35, 1, "dc2434"),),
        head_bands=((90, -0.15, 0.3, "101010"), (-90, 0.4, 1, "fbf6ec")),
        wing_bands=((0, 0.35, 1, "36bdf0"), (180, 0.5, 1, "141a1c")),
    ),
    Species(
        "Indian Roller", body="b07c6c", head="b8846c", wing="1c3fae", tail="1a48a8", beak="1c1a1a",
        legs="b08a50", depth=0.54, tilt=38, head_size=0.23, beak_length=0.25, beak_depth=0.11,
        leg_length=0.14, tail_length=0.38, tail_width=0.18,
        body_bands=((-120, 0.0, 1, "6cc8e8"),), head_bands=((90, 0.35, 1, "2cb0c0"),),
        wing_bands=((0, 0.55, 1, "7c6a4c"), (180, -0.15, 0.3, "5cd0f4")),
        tail_bands=((180, 0.1, 0.6, "4cbcec"),), eye_ring="d88a4c",
    ),
    Species(
        "Jungle Babbler", body="a4865e", head="9a7e5a", wing="7a6044", tail="6e563c", beak="f2d26a",
        legs="e2bc74", depth=0.64, tilt=22, head_size=0.22, beak_length=0.19, beak_depth=0.1,
        leg_length=0.3, tail_length=0.66, tail_width=0.2, tail_angle=15, eye="f4ecc0",
        body_bands=((0, 0.45, 0.52, "846a48"), (0, 0.62, 0.69, "846a48")),
    ),
    Species(
        "Northern Lapwing", body="f8f6f2", head="14181a", wing="1f4a3c", tail="f2f0ec",
        beak="161616", legs="b06a60", depth=0.54, tilt=12, head_size=0.18, beak_length=0.14,
        beak_depth=0.06, leg_length=0.42, tail_length=0.26, tail_width=0.16, crest="wisp",
        body_bands=((0, 0.4, 1, "14181c"), (100, 0.4, 1, "24503f"), (-160, 0.6, 1, "d8742c")),
        head_bands=((200, 0.1, 0.8, "f4f2ee"),), wing_bands=((0, 0.3, 0.8, "6a3f70"),),
        tail_bands=((180, 0.5, 1, "121212"),),
    ),
    Species(
        "Red-Wattled Lapwing", body="faf8f4", head="121214", wing="a8845c", tail="f4f2ee",
        beak="e0261c", legs="f4d21e", depth=0.46, tilt=14, neck=0.14, head_size=0.16,
        beak_length=0.22, beak_depth=0.08, leg_length=0.72, tail_length=0.28, tail_width=0.15,
        body_bands=((20, 0.5, 1, "121214"),),
        head_bands=((180, 0.35, 1, "fbfaf6"), (0, 0.45, 1, "e0261c")),
        wing_bands=((180, 0.55, 1, "141414"),), tail_bands=((180, 0.35, 0.8, "141414"),),
        eye_ring="e0261c",
    ),
    Species(
        "Ruddy Shelduck", body="e07a1e", head="f2cf94", wing="d86c16", tail="14120f", beak="101010",
        legs="1c1a18", depth=0.5, tilt=4, neck=0.26, head_size=0.16, beak_length=0.2,
        beak_depth=0.1, leg_length=0.13, tail_length=0.18, tail_width=0.17,
        head_bands=((0, 0.3, 1, "f8e6c4"),),
        wing_bands=((180, 0.5, 1, "12100e"), (180, 0.25, 0.5, "1e7a4c"), (-90, 0.5, 1, "fbf6ea")),
    ),
    Species(
        "Rufous Treepie", body="d8803a", head="38322e", wing="d4d0ca", tail="b4b0ac", beak="26241f",
        legs="2c2824", depth=0.46, tilt=30, head_size=0.2, beak_length=0.2, beak_depth=0.12,
        leg_length=0.18, tail_length=1.1, tail_width=0.15, body_bands=((0, 0.5, 1, "443a34"),),
        wing_bands=((0, 0.6, 1, "b8642c"), (180, 0.25, 1, "161412")),
        tail_bands=((180, 0.5, 1, "121010"),),
    ),
    Species(
        "Sarus Crane", body="8c9cac", head="dc281c", wing="7c8ea0", tail="a4b2be", beak="a8a078",
        legs="dc6a74", depth=0.48, tilt=18, neck=1.0, head_size=0.12, beak_length=0.3,
        beak_depth=0.07, leg_length=1.0, tail_length=0.2, tail_width=0.26,
        head_bands=((90, 0.35, 1, "c8ccc4"),), wing_bands=((180, 0.6, 1, "4c545c"),),
        eye="e88a24",
    ),
    Species(
        "White Wagtail", body="fafafa", head="fafafa", wing="8c98a4", tail="121214", beak="141414",
        legs="1a1a1a", depth=0.5, tilt=14, head_size=0.2, beak_length=0.15, beak_depth=0.05,
        leg_length=0.34, tail_length=0.8, tail_width=0.13,
        body_bands=((90, 0.4, 1, "98a4b0"), (10, 0.55, 1, "121214")),
        head_bands=((150, 0.3, 1, "101012"), (-80, 0.6, 1, "101012")),
        wing_bands=((180, -0.1, 0.1, "fafafa"), (180, 0.35, 0.55, "fafafa"),
                    (180, 0.55, 1, "26282c")),
        tail_bands=((90, 0.5, 1, "fafafa"),),
    ),
    Species(
        "White-Breasted Kingfisher", body="7a3418", head="7c3214", wing="1c90e0", tail="1c80d4",
        beak="e02c1c", legs="e03a28", depth=0.56, tilt=46, head_size=0.26, beak_length=0.5,
        beak_depth=0.15, leg_length=0.08, tail_length=0.4, tail_width=0.18,
        body_bands=((0, 0.2, 1, "fcfaf6"),), head_bands=((-70, 0.4, 1, "fcfaf6"),),
        wing_bands=((0, 0.4, 0.7, "141820"), (0, 0.7, 1, "74300f"), (180, 0.6, 1, "141820")),
    ),
    Species(
        "White-Breasted Waterhen", body="fbfaf6", head="fbfaf6", wing="3c444c", tail="a8502c",
        beak="c8cc3a", legs="e4cc3c", depth=0.6, tilt=24, neck=0.12, head_size=0.18,
        beak_length=0.2, beak_depth=0.09, leg_length=0.6, tail_length=0.22, tail_width=0.18,
        tail_angle=-35, body_bands=((115, 0.1, 1, "3a4248"), (-165, 0.5, 1, "c0602c")),
        head_bands=((120, 0.25, 1, "3a4248"),),
    ),
)  # fmt: skip
CLASSES = tuple(species.name for species in SPECIES)
