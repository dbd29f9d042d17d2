"""Time the public package imagecorruptions in an environment of its own.

`benchmarks/corruptions.py` runs this; nothing of labtune is imported here.

    python reference_corruptions.py IMAGES.npy     (N, H, W, 3) uint8

Answers each line "NAME SECONDS" on standard input with "IMAGES SECONDS": how many it corrupted at
severity 3, for at least so long, and the processor time of its thread.

The package's code is used as published. One call of it no longer exists in scikit-image 0.19 and
later: `gaussian(multichannel=True)`, which is passed on as `channel_axis=-1`.
"""

from __future__ import annotations

import sys
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")


def load():
    """Import the package, with the one name that has moved."""
    import cv2  # pyrefly: ignore[missing-import]
    import skimage.filters  # pyrefly: ignore[missing-import]

    gaussian = skimage.filters.gaussian

    def with_channels(image, sigma=1, multichannel=False, **options):
        return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)

    skimage.filters.gaussian = with_channels
    cv2.setNumThreads(1)
    from imagecorruptions import corrupt  # pyrefly: ignore[missing-import]

    return corrupt


def main():
    """Answer until the input ends."""
    corrupt = load()
    images = np.load(sys.argv[1], allow_pickle=False)
    print("ready", flush=True)
    for line in sys.stdin:
        name, least = line.split()
        done, start = 0, time.thread_time()
        while done == 0 or time.thread_time() - start < float(least):
            corrupt(images[done % len(images)], severity=3, corruption_name=name)
            done += 1
        print(done, time.thread_time() - start, flush=True)


if __name__ == "__main__":
    main()
