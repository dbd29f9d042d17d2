"""How does accuracy depend on the batch size, with batch norm and with group norm?

2 norms x batch 8 and 128 x 3 seeds, each to its last epoch or its own plateau, 4 to 12 minutes on
two CPU cores with the embedded synthetic birds; with the lab's photographs (--data-dir) up to 50
epochs at 256x256. A search stops what is behind early (ASHA).

    python studies/batch_size.py                                     embedded birds
    python studies/batch_size.py --set batch_size=1,2,4,8,16,32,64,128   the whole row
    python studies/batch_size.py --patience 0                        every trial to its last epoch
    python studies/batch_size.py --search optuna --trials 12 --set norm=bn batch_size=32
"""

from analysis import saliency
from analysis.studies import batch_size, search
from core.study import Data, Part, Range, Scale, Search, Stopping, Study, main
from trainables.birds import Config, check_batches, describe_images, share_slot, train_birds

study = Study(
    name="batch_size",
    question="How does accuracy depend on the batch size, with batch norm and with group norm?",
    trainable=train_birds,
    config=Config,
    parts={
        "main": Part(
            grid={"norm": ["bn", "gn"], "batch_size": [8, 128]},
            fixed={"recipe": "good", "lr_scaling": "linear"},
        )
    },
    scales={
        "demo": Scale(
            seeds=3, settings={"image_size": 20, "epochs": 12, "train_images": 800}, patience=8
        ),
        "full": Scale(seeds=3, patience=8),
        "smoke": Scale(
            seeds=2,
            settings={"image_size": 16, "epochs": 3, "train_images": 150, "val_images": 50},
            patience=8,
        ),
    },
    metric="val_accuracy",
    mode="max",
    data=Data(prepare=describe_images, check=check_batches, fit=share_slot),
    report=lambda folder: batch_size.report(folder, extra=saliency.sections),
    search=Search(
        space={
            "lr": Range(1e-3, 1.0, log=True),
            "weight_decay": Range(1e-5, 1e-2, log=True),
            "momentum": Range(0.5, 0.98),
        },
        stopping=Stopping(scheduler="asha", grace=3, reduction_factor=2),
        report=search.report,
    ),
)

if __name__ == "__main__":
    main(study)
