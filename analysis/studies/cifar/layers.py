"""The layers of the CIFAR study's networks, with their output sizes and parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.document import tables
from core.errors import UserError
from core.layers.freezing import small_stem
from core.layers.sizes import LayerSize, as_text, layer_sizes, times
from core.models.pretrained import resnet18
from core.models.small_cnn import FORMS, SmallCNN

CNN_SIZE = 32


def print_layers(settings: Mapping[str, Any], folder: Path) -> int:
    """Print the layers' output sizes and parameters of both networks, and run nothing.

    Args:
        settings: what the user set; image_size, bn and maxpool count.
        folder: not used.
    """
    size = settings.get("image_size", CNN_SIZE)
    if size < 8:
        raise UserError(f"--set image_size={size}: image_size must be at least 8")
    if size == CNN_SIZE:
        for form in settings.get("bn", ["listing"]):
            print(f"the lab's CNN, bn={form}, for images of 3 x {size} x {size}\n")
            print(f"{as_text(cnn_layers(form))}\n")
    model = resnet18("none", 10)
    small_stem(model, "printed", maxpool=settings.get("maxpool", True))
    print(f"ResNet-18 with a 3x3 first convolution, for images of 3 x {size} x {size}\n")
    print(as_text(layer_sizes(model, (3, size, size))))
    return 0


def cnn_layers(form: str) -> list[LayerSize]:
    """Return the layers of the lab's CNN for its 32x32 images."""
    known = next(one for one in FORMS if one == form)
    return layer_sizes(SmallCNN(known), (3, CNN_SIZE, CNN_SIZE))


def layer_table(form: str) -> tables.Table:
    """The layer sizes of the CNN."""
    numbers = pd.DataFrame([vars(row) | {"shape": times(row.output)} for row in cnn_layers(form)])
    columns = (
        tables.text("name", "layer"),
        tables.text("kind", "kind"),
        tables.text("shape", "output"),
        tables.number("parameters", "parameters"),
        tables.text("formula", "width by formula"),
    )
    total = int(numbers.drop_duplicates("name")["parameters"].sum())
    images = f"3 x {CNN_SIZE} x {CNN_SIZE}"
    caption = f"The CNN as the lab lists it (bn={form}) for images of {images}."
    formula = "floor((x + 2p − k) / s) + 1, held against torch."
    note = f"{total:,} parameters for ten classes. {formula}"
    return tables.Table("layers", numbers, columns, caption, note)
