"""Images of a study's best trial as PNG files and one .npz, made from its stored weights.

python analysis/generation_samples.py results/generation/demo --samples 1000
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from analysis.results.folder import load
from analysis.studies.generation.samples import write_samples
from core.errors import UserError


def main(folder: Annotated[Path, tyro.conf.Positional], samples: int = 100) -> int:
    """Write images of the best trial of a generation study.

    Args:
        folder: result folder, results/generation/<name>.
        samples: how many.
    """
    try:
        if samples < 1:
            raise UserError(f"--samples {samples}: give a whole number of at least 1")
        print(f"{samples} images in {write_samples(load(folder), samples)}")
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
