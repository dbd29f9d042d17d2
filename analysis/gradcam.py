"""Where the best network of a study looks: Grad-CAM of right and wrong validation images.

The method is that of Selvaraju et al. 2017 (arXiv:1610.02391, section 3), by the package grad-cam.

    python analysis/gradcam.py results/norms/demo                     the lab's seven classes
    python analysis/gradcam.py results/norms/demo --classes Hoopoe "House Crow"
    python analysis/gradcam.py results/norms/full --data-dir birds    a study of your own images

Writes gradcam.html, gradcam.pdf, figures/gradcam_<class>.svg and .png, tables/gradcam.* and
gradcam.npz into the result folder. All on the CPU: 20 seconds for the demo, some minutes for
photographs of 256 x 256 pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
import tyro
from PIL import Image

from analysis import figures, gradcam_page, provenance, tables
from analysis import report as reports
from analysis.gradcam_page import EACH, Maps, enlarge
from analysis.markup import escape
from analysis.report import Report, Section, Text
from analysis.results import Results, load, load_predictions
from core.data import folders
from core.data import images as data_images
from core.data.synthetic import birds
from core.errors import UserError
from core.storage.files import read_json
from core.study.progress import patient_output

if TYPE_CHECKING:  # torch and the package take seconds to load: only where maps are made
    from torch import Tensor

    from core.models.resnet import ResNet

Pick = Literal["confident", "random"]

LAB_CLASSES = (
    "Cattle Egret",
    "Coppersmith Barbet",
    "Indian Peacock",
    "Red Wattled Lapwing",
    "Ruddy Shelduck",
    "White Breasted Kingfisher",
    "White Breasted Waterhen",
)
STEPS = 20  # of the deletion and insertion curves
BLUR = 0.25  # standard deviation of the blur that insertion starts from, in image widths
_RULE = 1  # part of what a stored gradcam.npz is told by: raise it when a change can move a number


@dataclass(frozen=True)
class Options:
    """Show where the best network of a study looks.

    Attributes:
        results: a finished study's result folder.
        classes: names of classes, spelled with or without hyphens and capitals.
        data_dir: root of the study's images; the embedded birds need none.
        pick: show the most confident right and wrong images, or random ones.
        seed: of --pick random.
    """

    results: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RESULTS")]]
    classes: tuple[str, ...] = ()
    data_dir: Path | None = None
    pick: Pick = "confident"
    seed: int = 0


@patient_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the maps as `argv` says; return 0, or 2 when something given cannot be used."""
    opts = tyro.cli(Options, args=argv, description=__doc__)
    try:
        _write_page(opts)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def _write_page(opts: Options) -> None:
    if (opts.results / "study.json").is_file() and not (opts.results / "trials.csv").is_file():
        raise UserError(f"the study in {opts.results} has not ended: go on with it by --resume")
    results = load(opts.results)
    found = compute(results, opts.data_dir, opts.classes, opts.pick, opts.seed)
    gradcam_page.store(found, opts.results)
    page = Report(
        title="Where the best network looks",
        question="Which parts of an image speak for its true class, when the network is right and "
        "when it is wrong?",
        sections=(*gradcam_page.sections(results, found), provenance.how_made(results)),
        banners=provenance.banners(results),
        footer="Pictures, maps and every number are in `gradcam.npz` and `tables/` beside this "
        "file.",
    )
    # two classes a page, after a page of text and before one on how the study was made
    reports.write(page, opts.results, max_pages=4 + len(found.chosen), name="gradcam")
    tables.print_table(gradcam_page.headline(found))
    print(f"page: {opts.results / 'gradcam.html'}")


def sections(
    results: Results,
    data_dir: Path | str | None = None,
    classes: Sequence[str] = (),
    pick: Pick = "confident",
    seed: int = 0,
) -> list[Section]:
    """Draw the maps of a study and return what its report says of them.

    Writes figures/gradcam_<class>, tables/gradcam, tables/gradcam_images and gradcam.npz. Maps
    that were made before from the same weights are shown again, so that a copy of the folder gives
    the same report without the images.

    Args:
        results: a study with `checkpoints/`.
        data_dir: root of its images; None for the embedded birds.
        classes: names; by default the lab's seven, or the first seven where there are none of them.
        pick: "confident" or "random", see `choose`.
        seed: of "random".

    Returns:
        A section on all classes, then one for each; or one that says in a sentence why there are no
        maps, with nothing drawn.
    """
    try:
        best = _checkpoint(results.path)
        kept = gradcam_page.restore(results.path)
        asked = _asked(best, classes, pick, seed)
        if kept is not None and kept.about["asked"] == asked:
            found = kept
        else:
            found = _again(kept, results, asked, data_dir)
    except UserError as e:
        reason = provenance.relative(str(e))
        return [Section("Grad-CAM", (Text(f"There are no maps: {escape(reason)}."),))]
    if found is not kept:
        gradcam_page.store(found, results.path)
    return gradcam_page.sections(results, found)


def _again(
    kept: Maps | None, results: Results, asked: dict[str, Any], data_dir: Path | str | None
) -> Maps:
    """Make the maps that are asked for; where that fails, take kept ones of the same weights."""
    try:
        return compute(results, data_dir, asked["classes"], asked["pick"], asked["seed"])
    except UserError:
        same = ("rule", "checkpoint")
        if kept is None or any(kept.about["asked"][key] != asked[key] for key in same):
            raise
        return kept


def compute(
    results: Results,
    data_dir: Path | str | None = None,
    classes: Sequence[str] = (),
    pick: Pick = "confident",
    seed: int = 0,
) -> Maps:
    """Score the validation images with the best network and map those of the chosen classes.

    Args:
        results: a finished study with `checkpoints/`.
        data_dir: root of its images; None for the embedded birds.
        classes: names as `core.data.folders.match_class` takes them; () for the default.
        pick: "confident" or "random", see `choose`.
        seed: of "random".

    Raises:
        UserError: no checkpoint or a damaged one, no images, images of other classes, or a class
            that is not there.
    """
    best = _checkpoint(results.path)
    root = _root(results, data_dir)
    val = _images(results, root, best["config"])
    chosen, note = _chosen(classes, val.classes)
    model = _network(results.path, best["config"], len(val.classes))
    probabilities = _probabilities(model, val, results.path)
    frame = choose(frame_of(val, probabilities, chosen), pick, seed)

    number = np.asarray(frame["number"])
    maps = _aggregated(model, val, number)
    size = val.images.shape[-1]
    masks = [_mask(root, val.files[i], size) for i in number]
    places = np.asarray(frame["place"])
    rows = np.argsort(places, kind="stable")[np.sum(places < 0) :]
    pictures = val.images[number[rows]]
    areas = faithfulness(model, _tensor(pictures), val.labels[number[rows]], maps[rows])
    columns = shares(maps, masks, size)
    for name, values in areas.items():
        columns[name] = np.full(len(frame), np.nan)
        columns[name][rows] = values
    for name, values in columns.items():
        frame[name] = values

    about = {
        "asked": _asked(best, classes, pick, seed),
        "trial": best["trial"],
        "epoch": best["epoch"],
        "layers": 2 * best["config"]["n"],
        "note": note,
        "steps": STEPS,
        "blur": BLUR,
        **_check(results, best, val, probabilities),
    }
    return Maps(
        frame.drop(columns="number"), pictures, maps[rows], val.classes, tuple(chosen), about
    )


def _probabilities(model: ResNet, val: data_images.ImageSet, results: Path) -> np.ndarray:
    """Return the probabilities (N, classes) of all validation images."""
    import torch

    from core.data.batches import Batches
    from core.training.epoch import evaluate

    batches = Batches(val, _batch_size(val.images.shape[-1]), torch.device("cpu"))
    _, logits = evaluate(model, batches.epoch(0), num_classes=len(val.classes))
    if not logits.isfinite().all():
        raise UserError(
            f"{results}/checkpoints/best.pt is damaged (its scores are not finite): copy "
            "best.pt of the best trial there again"
        )
    return logits.double().softmax(1).numpy()


def _aggregated(model: ResNet, val: data_images.ImageSet, number: np.ndarray) -> np.ndarray:
    """Return the maps (len(number), size, size) of these images for their true classes."""
    step = _batch_size(val.images.shape[-1])
    parts = (number[start : start + step] for start in range(0, len(number), step))
    return np.concatenate(
        [aggregate(layer_maps(model, _tensor(val.images[i]), val.labels[i])) for i in parts]
    )


# ---- what the study left behind ----


def _checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of checkpoints/best.json with the SHA-256 of best.pt as "sha256"."""
    weights, told = path / "checkpoints" / "best.pt", path / "checkpoints" / "best.json"
    missing = [file.name for file in (weights, told) if not file.is_file()]
    if missing:
        raise UserError(
            f"{path} holds no {' and no '.join(missing)} in checkpoints/: Grad-CAM needs the "
            "weights of a trial that finished"
        )
    best = read_json(told)
    config = best.get("config") if isinstance(best, dict) else None
    if not isinstance(config, dict) or not {"trial", "epoch"} <= best.keys():
        raise UserError(f"{told} is damaged (no trial with its config): restore it from a copy")
    sizes = (config.get("n"), config.get("image_size"))
    if not all(isinstance(n, int) and n > 0 for n in sizes) or "norm" not in config:
        raise UserError(
            f"{told} does not describe a residual network for images (n, norm and image_size): "
            "there is no Grad-CAM for it"
        )
    return best | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:32]}


def _network(path: Path, config: dict[str, Any], num_classes: int) -> ResNet:
    from core.layers.norms import NORMS
    from core.models.resnet import load_weights, resnet

    if config["norm"] not in NORMS:
        raise UserError(
            f"{path}/checkpoints/best.json names the norm {config['norm']!r}, not one of "
            f"{', '.join(NORMS)}: restore it from a copy"
        )
    model = resnet(config["n"], num_classes, config["norm"])
    load_weights(model, path / "checkpoints" / "best.pt")
    # Only the mapped stage needs gradients: a backward pass through the rest would cost most.
    model.requires_grad_(False)
    model.stage3.requires_grad_(True)
    return model.eval()


def _root(results: Results, data_dir: Path | str | None) -> Path:
    if data_dir is not None:
        return Path(data_dir)
    if (results.study.get("data") or {}).get("kind") == "synthetic":
        return birds.default_birds()
    private = results.path / ".private.json"  # the engine's note of where the images were
    recorded = read_json(private).get("data_dir") if private.is_file() else None
    if recorded is not None and Path(recorded).is_dir():
        return Path(recorded)
    raise UserError(
        "the study was run on images of your own, and its folder does not say where they are: "
        f"name their folder, as in python analysis/gradcam.py {results.path} --data-dir PATH"
    )


def _images(results: Results, root: Path, config: dict[str, Any]) -> data_images.ImageSet:
    """Return the validation images of the study, labelled as in its training."""
    listing = folders.scan(
        root
    )  # of both splits: where they spell a class in two ways, train's counts
    recorded = results.study.get("data") or {}
    classes = recorded.get("classes")
    if classes is not None and tuple(classes) != listing.classes:
        raise UserError(
            f"--data-dir {root} holds other classes than the study's ({len(listing.classes)} and "
            f"{len(classes)}, as {listing.classes[0]} and {classes[0]}): give the one it was run on"
        )
    limit = {"val": config.get("val_images")}
    skip = bool(recorded.get("skipped"))
    val = data_images.load(root, config["image_size"], ("val",), limit=limit, skip_broken=skip)[
        "val"
    ]
    label = {file.path: file.label for file in listing.files["val"]}
    labels = np.array([label[file] for file in val.files], dtype=np.int64)
    return dataclasses.replace(val, labels=labels, classes=listing.classes)


def _chosen(names: Sequence[str], classes: tuple[str, ...]) -> tuple[list[int], str]:
    """Return the labels of the classes to show and, for a default, a sentence on what it became."""
    found = {name: folders.match_class(name, classes) for name in names or LAB_CLASSES}
    unknown = [name for name, match in found.items() if match is None]
    labels = list(dict.fromkeys(classes.index(match) for match in found.values() if match))
    if names:
        if unknown:
            raise UserError(
                f"--classes: there is no {', '.join(unknown)} among the study's classes: "
                f"{', '.join(classes)}"
            )
        return labels, ""
    if labels:
        note = f"The lab's classes that these images do not have: {', '.join(unknown)}."
        return labels, note if unknown else ""
    first = list(range(min(len(LAB_CLASSES), len(classes))))
    return first, (
        "None of the classes that the lab names is among these images: shown are the first "
        f"{len(first)}."
    )


def _asked(best: dict[str, Any], classes: Sequence[str], pick: str, seed: int) -> dict[str, Any]:
    """Return what tells one set of maps from another."""
    return {
        "rule": _RULE,
        "checkpoint": best["sha256"],
        "classes": list(classes),
        "pick": pick,
        "seed": seed,
    }


def _mask(root: Path, file: str, size: int) -> np.ndarray | None:
    """Return the share of each pixel that the object covers, (size, size) in [0, 1].

    Masks lie at masks/<split>/<class>/<stem>.png below the data root; None where there is none.
    """
    path = root / "masks" / PurePosixPath(file).with_suffix(".png")
    try:
        with Image.open(path) as mask:
            grey = mask.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError) as e:
        raise UserError(f"the mask {path} cannot be read ({e}): restore or remove it") from e
    return np.asarray(grey, dtype=np.float64) / 255


def _check(
    results: Results, best: dict[str, Any], val: data_images.ImageSet, probabilities: np.ndarray
) -> dict[str, Any]:
    """Compare what the network says now with what the study recorded.

    Returns:
        images, accuracy (now), recorded (of the same epoch; None if not told) and difference (the
        largest of any probability; None unless the stored scores are of the same epoch: they once
        were of the last).
    """
    history = results.history
    row = history[(history["trial"] == best["trial"]) & (history["epoch"] == best["epoch"])]
    recorded = row["val_accuracy"].iloc[0] if len(row) and "val_accuracy" in row else None
    last = history.loc[history["trial"] == best["trial"], "epoch"].max()
    difference = None
    if best["trial"] in results.with_predictions():
        stored = load_predictions(results.path, best["trial"])
        place = {file: number for number, file in enumerate(stored.files)}
        same = best["epoch"] == (last if stored.epoch is None else stored.epoch)
        if same and all(file in place for file in val.files):
            scores = stored.scores[[place[file] for file in val.files]].astype(np.float64)
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            stored_probabilities = odds / odds.sum(axis=1, keepdims=True)
            difference = float(np.abs(stored_probabilities - probabilities).max())
    return {
        "images": len(val),
        "accuracy": float((probabilities.argmax(1) == val.labels).mean()),
        "recorded": None if recorded is None else float(recorded),
        "difference": difference,
    }


# ---- images to show ----


def frame_of(
    val: data_images.ImageSet, probabilities: np.ndarray, chosen: Sequence[int]
) -> pd.DataFrame:
    """Return a row per validation image of the chosen classes, class by class.

    Args:
        val: N images.
        probabilities: (N, C), rows that sum to 1.
        chosen: labels.

    Returns:
        number (in `val`), file, label, predicted (a label), right, true_probability and
        predicted_probability in [0, 1].
    """
    number = np.concatenate([np.flatnonzero(val.labels == label) for label in chosen])
    labels, p = val.labels[number], probabilities[number]
    predicted = p.argmax(axis=1)
    row = np.arange(len(number))
    return pd.DataFrame(
        {
            "number": number,
            "file": [val.files[i] for i in number],
            "label": labels,
            "predicted": predicted,
            "right": predicted == labels,
            "true_probability": p[row, labels],
            "predicted_probability": p[row, predicted],
        }
    )


def choose(frame: pd.DataFrame, pick: Pick = "confident", seed: int = 0) -> pd.DataFrame:
    """Choose up to `EACH` right and `EACH` wrong images of each class.

    Args:
        frame: from `frame_of`, its index counting from 0.
        pick: "confident": those with the most probable prediction, ties by file name; "random":
            drawn by `seed`, for each class independently of which others are shown.
        seed: of "random".

    Returns:
        `frame` with the column place: 0, 1, ... for the images to show, by class, right ones
        first, then in the order of the choice; -1 for the others.
    """
    places = np.full(len(frame), -1)
    count = 0
    for label in frame["label"].unique():
        for right in (True, False):
            group = frame[(frame["label"] == label) & (frame["right"] == right)]
            group = group.sort_values("file", kind="stable")
            if pick == "random":
                drawn = np.random.default_rng([seed, int(label), right]).permutation(len(group))
                group = group.iloc[drawn]
            else:
                group = group.sort_values("predicted_probability", ascending=False, kind="stable")
            shown = np.asarray(group.index[:EACH])
            places[shown] = np.arange(count, count + len(shown))
            count += len(shown)
    return frame.assign(place=places)


# ---- maps ----


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


# ---- deletion and insertion ----


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
    heat = {"": enlarge(maps, size)}
    drawn = np.random.default_rng(0).random(maps.shape)
    heat["random_"] = enlarge(drawn, size)
    found: dict[str, list[float]] = {}
    for prefix, wide in heat.items():
        for image, label, one in zip(images, labels, wide, strict=True):
            for name, value in perturbed(model, image, int(label), one).items():
                found.setdefault(prefix + name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


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
            images = torch.where(changed, later, now).split(_batch_size(heat.shape[-1]))
            p = torch.cat([model(x) for x in images]).double().softmax(1)[:, label]
            found[name] = float((p[:-1] + p[1:]).mean() / 2)
    return found


def _batch_size(size: int) -> int:
    """Return how many images of `size` x `size` go through the network at once.

    Two at 256 pixels: a core scores them three times as fast as in batches of 20, whose activations
    are so large that the system hands out fresh memory for each.
    """
    return max(1, min(64, 2**17 // size**2))


def _tensor(images: np.ndarray) -> Tensor:
    """Normalise uint8 images (B, 3, S, S) as `core.data.batches.Batches` does."""
    import torch

    from core.data.augment import normalise

    return normalise(torch.from_numpy(np.array(images)))


if __name__ == "__main__":
    # Python puts this folder first in its path, where statistics.py would hide its own module.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    sys.exit(main())
