"""Where the best network of a study looks: Grad-CAM of right and wrong validation images.

The method is that of Selvaraju et al. 2017 (arXiv:1610.02391, section 3), by the package grad-cam.

    python analysis/gradcam.py results/norms/demo                     the lab's seven classes
    python analysis/gradcam.py results/norms/demo --classes Hoopoe "House Crow"
    python analysis/gradcam.py results/norms/full --data-dir birds    a study of your own images

Writes gradcam.html, gradcam.pdf, figures/gradcam_<class>.svg and .png, tables/gradcam.* and
gradcam.npz into the result folder. All on the CPU: 20 seconds for the demo, some minutes for
photographs of 256 x 256 pixels.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from analysis.command import run
from analysis.document import provenance, tables
from analysis.document.report import Report, write
from analysis.results.folder import load
from analysis.saliency import page
from analysis.saliency.study import Pick, compute
from core.errors import UserError


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


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the maps as `argv` says; return 0, or 2 when something given cannot be used."""
    return run(_write_page, Options, __doc__, argv)


def _write_page(opts: Options) -> None:
    if (opts.results / "study.json").is_file() and not (opts.results / "trials.csv").is_file():
        raise UserError(f"the study in {opts.results} has not ended: go on with it by --resume")
    results = load(opts.results)
    found = compute(results, opts.data_dir, opts.classes, opts.pick, opts.seed)
    page.store(found, opts.results)
    report = Report(
        title="Where the best network looks",
        question="Which parts of an image speak for its true class, when the network is right and "
        "when it is wrong?",
        sections=(*page.sections(results, found), provenance.how_made(results)),
        banners=provenance.banners(results),
        footer="Pictures, maps and every number are in `gradcam.npz` and `tables/` beside this "
        "file.",
    )
    # two classes a page, after a page of text and before one on how the study was made
    write(report, opts.results, max_pages=4 + len(found.chosen), name="gradcam")
    tables.print_table(page.headline(found))
    print(f"page: {opts.results / 'gradcam.html'}")


if __name__ == "__main__":
    sys.exit(main())
