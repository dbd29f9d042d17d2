"""Images of a finished generation study: those it stored, and new ones of its best network."""

import io
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from analysis.results.folder import Results, about_arrays, arrays
from core.errors import UserError
from core.generation import families
from core.generation.family import Family, stream
from core.models.weights import check_finite
from core.storage.files import read_json, write_bytes, write_json

_STREAM = 99  # of the best trial's seed: other images than those its report shows


@dataclass(frozen=True)
class Stored:
    """What a trial of the generation study left in predictions/; M samples made, N of them kept."""

    samples: np.ndarray  # (N, C, S, S) uint8, made with the weights of `epoch`
    labels: np.ndarray  # (N,) that were asked for
    logits: np.ndarray  # (N, classes) of the classifier
    classes: tuple[str, ...]  # names
    grids: np.ndarray  # (epochs, G, C, S, S) from the same latents after each epoch
    grid_labels: np.ndarray  # (G,)
    real: np.ndarray  # (G, C, S, S) training images with these labels
    nearest_distance: np.ndarray  # (M,) of every sample made, to a training image (grey levels)
    # (M,) how much nearer that image is than the 50 that look most alike, see
    # `core.generation.copies` (folders without `copy_check` in study.json: in pixels)
    nearest_ratio: np.ndarray
    pairs: np.ndarray  # (P,) indices of samples shown with their nearest training images
    pair_images: np.ndarray  # (P, C, S, S) these training images
    held_out_distance: np.ndarray  # as nearest_distance, of held-out real images
    held_out_ratio: np.ndarray  # as nearest_ratio, of the held-out images that set its limit
    held_out_pairs: np.ndarray  # indices into held_out_distance
    held_out_images: np.ndarray  # (P, C, S, S) some held-out images
    held_out_nearest: np.ndarray  # (P, C, S, S) the training images nearest to them
    interpolation: np.ndarray  # (rows, steps, C, S, S) between two latents each
    trajectory: np.ndarray  # (states, rows, C, S, S) from latent to image
    trajectory_times: np.ndarray  # (states,) in [0, 1]
    config: dict[str, Any]  # of the trial
    # None in folders that do not have it, as all below: (M, F) of every sample made
    features: np.ndarray | None = None
    real_features: np.ndarray | None = None  # (M, F) of the images precision is taken among
    real_mean: np.ndarray | None = None  # (F,) of the features of all training images
    real_covariance: np.ndarray | None = None  # (F, F) of them
    epoch: int | None = None  # whose weights made all but the grids; None: the last


def load_stored(path: Path, trial: str) -> Stored:
    """Read `path`/predictions/`trial`.npz; pickled content is refused.

    Raises UserError: the file is missing, damaged or of another study.
    """
    about = ("classes", "config", "epoch")
    with arrays(path, trial) as stored:
        found: dict[str, Any] = {
            field.name: stored["scores" if field.name == "logits" else field.name]
            for field in fields(Stored)
            if field.name not in about and (field.default is MISSING or field.name in stored)
        }
        return Stored(**found, **about_arrays(stored))


def write_samples(results: Results, count: int) -> Path:
    """Make `count` images of the best trial and write them to samples/ of the result folder.

    The weights are those of the best trial's best epoch, checkpoints/best.pt; nothing is trained,
    and the data are not needed. Equal shares of every class, in turn, where labels were learnt.
    Raises UserError: no finished trial, or damaged files.

    Returns:
        The folder: <number>-<class>.png, samples.npz (images (N, S, S, C) uint8, labels, classes)
        and samples.json, which names trial and epoch.
    """
    best, family, classes = best_family(results)
    labels = torch.arange(count) % len(classes)
    seed = stream(best["config"]["seed"], _STREAM)
    made = family.sample(labels, torch.Generator().manual_seed(seed))
    pixels = made.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    images = pixels.permute(0, 2, 3, 1).numpy()
    conditional = bool(best["config"]["conditional"])
    folder = results.path / "samples"
    for old in folder.glob("*.png"):
        old.unlink()
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        name = classes[int(labels[number])] if conditional else "image"
        name = re.sub(r"[^\w-]", "_", name)[:40]
        Image.fromarray(image.squeeze()).save(folder / f"{number:06d}-{name}.png")
    buffer = io.BytesIO()
    if conditional:
        named = np.array(classes)
        np.savez_compressed(buffer, images=images, labels=labels.numpy(), classes=named)
    else:
        np.savez_compressed(buffer, images=images)
    write_bytes(folder / "samples.npz", buffer.getvalue())
    write_json(folder / "samples.json", {key: best[key] for key in ("trial", "epoch", "frechet")})
    return folder


def best_family(results: Results) -> tuple[dict[str, Any], Family, list[str]]:
    """Return checkpoints/best.json, the family with its weights, and the names of the classes.

    Raises UserError: no finished trial, or damaged files.
    """
    folder = results.path / "checkpoints"
    if not (folder / "best.json").is_file():
        raise UserError(f"{results.path} has no best trial yet: run the study to its end first")
    best = read_json(folder / "best.json")
    config, data = best["config"], results.study["data"]
    size = int(data["image_size"])
    classes = list(data["classes"])
    family = families.build(
        config["family"],
        (int(data["channels"]), size, size),
        config["width"],
        len(classes) if config["conditional"] else 0,
        **{name: config[name] for name in families.OPTIONS if name in config},
    )
    try:
        weights = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)
        family.average.network.load_state_dict(weights)
    except Exception as e:  # a damaged file raises almost anything
        raise UserError(
            f"{folder / 'best.pt'} cannot be read or does not fit best.json: restore it from a copy"
        ) from e
    check_finite(weights, folder / "best.pt")
    return best, family, classes
