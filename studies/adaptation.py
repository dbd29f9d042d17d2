"""What does a shift of the images cost a classifier, and what do new batch statistics win back?

8 corruptions x 5 severities without and with adaptation, and what the number of updates, the batch
size, the method and the order of the images do to it; about 3 minutes on two CPU cores with the
embedded model and synthetic birds.

    python studies/adaptation.py                       embedded model and birds
    python studies/adaptation.py --part severity --set corruption=frost severity=2     one cell
    python studies/adaptation.py --data-dir cifar10 --set checkpoint=resnet20.th images=2000
    python studies/adaptation.py --data-dir imagenet --set checkpoint=resnet18 images=5000
"""

from analysis.studies import adaptation
from core.study import Data, Part, Scale, Settings, Study, main
from trainables.adaptation import Config, adapt_cell, check_cells, describe_cells, no_silent_wrap

CORRUPTIONS = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]
CORRUPTIONS += ["snow", "frost", "fog", "brightness"]
CELL = {"corruption": ["frost"], "severity": [2]}  # the lab's own cell
METHODS = ["none", "running", "batch", "prior", "tent"]

study = Study(
    name="adaptation",
    question="What does a shift of the images cost a classifier, and what do new batch statistics "
    "win back?",
    trainable=adapt_cell,
    config=Config,
    parts={
        "clean": Part(grid={"method": METHODS}, fixed={"corruption": "clean", "severity": 0}),
        "severity": Part(
            grid={"corruption": CORRUPTIONS, "severity": [1, 2, 3, 4, 5]},
            fixed={"clean_reference": True},
        ),
        "updates": Part(
            grid={**CELL, "num_bn_updates": [1, 2, 5, 10, 20, 50, 100, 200], "seed": [0, 1, 2]}
        ),
        "batch-size": Part(grid={**CELL, "batch_size": [1, 4, 16, 64], "seed": [0, 1, 2]}),
        "methods": Part(grid={"corruption": CORRUPTIONS, "severity": [3], "method": METHODS}),
        "stream": Part(
            grid={
                **CELL,
                "method": ["running", "batch"],
                "order": ["shuffled", "dirichlet", "sorted"],
                "seed": [0, 1, 2],
            }
        ),
    },
    scales={
        # Half the lab's batch: the embedded images are few, and forward passes are all the time.
        "demo": Scale(seeds=1, settings={"images": 400, "batch_size": 32, "wrap": True}),
        "full": Scale(seeds=1, settings={"wrap": True}),
        "smoke": Scale(
            seeds=1, settings={"images": 80, "batch_size": 8, "num_bn_updates": 5, "wrap": True}
        ),
    },
    metric="acc_adapted",
    mode="max",
    data=Data(prepare=describe_cells, check=check_cells),
    settings=Settings(
        private=("data_dir", "skip_broken", "checkpoint", "frost_dir"),
        flags={"wrap": "wrap"},
        adjust=no_silent_wrap,
    ),
    report=adaptation.report,
)

if __name__ == "__main__":
    main(study)
