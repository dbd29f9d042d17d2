"""Class activation maps of a network, and whether they show what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.document import figures
from analysis.saliency.page import enlarge
from core.data import images as data_images
from core.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load: only where maps are made
    from torch import Tensor

    from core.models.resnet import ResNet

STEPS = 20  # of the deletion and insertion curves
BLUR = 0.25  # standard deviation of the blur that insertion starts from, in image widths


def probabilities_of(model: ResNet, val: data_images.ImageSet, results: Path) -> np.ndarray:
    """Return the probabilities (N, classes) of all validation images."""
    import torch

    from core.data.batches import Batches
    from core.training.epoch import cross_entropy, evaluate

    batches = Batches(val, at_once(val.images.shape[-1]), torch.device("cpu"))
    _, logits = evaluate(model, batches.epoch(0), cross_entropy(len(val.classes)))
    if not logits.isfinite().all():
        raise UserError(
            f"{results}/checkpoints/best.pt is damaged (its scores are not finite): copy "
            "best.pt of the best trial there again"
        )
    return logits.double().softmax(1).numpy()


def layer_maps(model: ResNet, images: Tensor, labels: np.ndarray) -> np.ndarray:
    """Grad-CAM of each of the last 2n convolution layers, at their own resolution.

    Per layer ReLU(sum_k a_k A_k), where a_k is the mean over the map of the gradient of the true
    class's logit by channel k (Selvaraju et al. 2017, equations 1 and 2), then scaled to [0, 1] per
    image so that every layer counts the same. A layer is a convolution with its norm: A is read
    after the norm, because instance norm takes the mean out of the gradient before it, and a_k
    would be rounding noise. The shortcuts of the network have no convolutions.

    Args:
        model: in evaluation mode; its last stage has gradients.
        images: (B, 3, S, S), normalised as in training.
        labels: (B,) the true classes.

    Returns:
        (B, 2n, h, w) float32 in [0, 1], layers from first to last; h = w = ceil(S / 4). A map is
        all 0 where no channel speaks for the class.
    """
    figures.matplotlib()  # before it is loaded with whatever backend the environment names
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class OwnSize(GradCAM):
        """The package's maps without its enlargement to the input and its mean over layers."""

        def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, int]:
            return tuple(self.activations_and_grads.activations[0].shape[:1:-1])

        def aggregate_multi_layers(self, cam_per_target_layer: Any) -> np.ndarray:
            return np.concatenate(cam_per_target_layer, axis=1)

    # Without targets the package would take the predicted class.
    targets: list[Any] = [ClassifierOutputTarget(int(label)) for label in labels]
    cam = OwnSize(model, [norm for block in model.stage3 for norm in (block.norm1, block.norm2)])
    try:
        return cam(images, targets)
    finally:
        cam.activations_and_grads.release()


def aggregate(layers: np.ndarray) -> np.ndarray:
    """Mean over layers (B, L, h, w) -> (B, h, w), scaled to [0, 1] per image again."""
    maps = layers.mean(axis=1)
    maps = maps - maps.min(axis=(1, 2), keepdims=True)
    return maps / (maps.max(axis=(1, 2), keepdims=True) + 1e-7)  # as the package scales


def shares(
    maps: np.ndarray, masks: Sequence[np.ndarray | None], size: int
) -> dict[str, np.ndarray]:
    """Where the mass of each map lies, its values taken as mass over the image's pixels.

    Args:
        maps: (N, h, w), none below 0.
        masks: for each image the object's share of each pixel, (size, size), or None.
        size: S of the images.

    Returns:
        inside (share of the mass on the object), area (share of the image that the object covers;
        what `inside` is for an even map) and half (smallest share of the image that holds half of
        the mass), each (N,) in [0, 1]; NaN without a mask, and for a map that is all 0.
    """
    nan = float("nan")
    inside, area, half = [], [], []
    for small, mask in zip(maps, masks, strict=True):
        heat = enlarge(small[None], size)[0].astype(np.float64)
        mass = heat.sum()
        area.append(nan if mask is None else mask.mean())
        inside.append(nan if mask is None or mass == 0 else (heat * mask).sum() / mass)
        running = np.cumsum(np.sort(heat, axis=None)[::-1])
        half.append(nan if mass == 0 else (np.searchsorted(running, mass / 2) + 1) / heat.size)
    return {"inside": np.array(inside), "area": np.array(area), "half": np.array(half)}


def faithfulness(
    model: ResNet, images: Tensor, labels: np.ndarray, maps: np.ndarray
) -> dict[str, np.ndarray]:
    """Deletion and insertion scores of the maps, and of random maps of the same resolution.

    Args:
        model: in evaluation mode.
        images: (N, 3, S, S), normalised as in training.
        labels: (N,) the true classes.
        maps: (N, h, w).

    Returns:
        deletion, insertion, random_deletion and random_insertion, each (N,) in [0, 1].
    """
    size = images.shape[-1]
    found = {}
    drawn = np.random.default_rng(0).random(maps.shape)
    for prefix, heat in (("", maps), ("random_", drawn)):
        each = zip(images, labels, enlarge(heat, size), strict=True)
        areas = [perturbed(model, image, int(label), one) for image, label, one in each]
        for name in ("deletion", "insertion"):
            found[prefix + name] = np.array([area[name] for area in areas])
    return found


def perturbed(model: ResNet, image: Tensor, label: int, heat: np.ndarray) -> dict[str, float]:
    """Area under the true class's probability while pixels go, or come, in the order of `heat`.

    As in Petsiuk et al. 2018 (RISE, section 4.2): deletion puts the mean colour of the
    normalisation (0 after it) in place of the hottest pixels first, insertion starts from a blurred
    image and puts the hottest pixels back first. Steps of 1/20 of the pixels, trapezoidal rule.

    Args:
        model: in evaluation mode.
        image: (3, S, S), normalised as in training.
        label: the true class.
        heat: (S, S); equal pixels go in reading order.

    Returns:
        deletion (low where the map finds what the network uses) and insertion (high), in [0, 1].
    """
    import torch
    from scipy.ndimage import gaussian_filter

    pixels = heat.size
    rank = np.empty(pixels, dtype=np.int64)
    rank[np.argsort(-heat, axis=None, kind="stable")] = np.arange(pixels)
    ends = np.arange(STEPS + 1) * pixels // STEPS
    changed = torch.from_numpy(rank.reshape(heat.shape) < ends[:, None, None])[:, None]
    sigma = BLUR * heat.shape[-1]
    blurred = torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest"))
    found = {}
    with torch.inference_mode():
        for name, now, later in (
            ("deletion", image, torch.zeros_like(image)),
            ("insertion", blurred, image),
        ):
            images = torch.where(changed, later, now).split(at_once(heat.shape[-1]))
            p = torch.cat([model(x) for x in images]).double().softmax(1)[:, label]
            found[name] = float((p[:-1] + p[1:]).mean() / 2)
    return found


def at_once(size: int) -> int:
    """Return how many images of `size` x `size` go through the network at once.

    Two at 256 pixels: a core scores them three times as fast as in batches of 20, whose activations
    are so large that the system hands out fresh memory for each.
    """
    return max(1, min(64, 2**17 // size**2))


def normalised(images: np.ndarray) -> Tensor:
    """Normalise uint8 images (B, 3, S, S) as `core.data.batches.Batches` does."""
    import torch

    from core.data.augment import normalise

    return normalise(torch.from_numpy(np.array(images)))
