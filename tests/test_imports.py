"""What is quick to import: a report made from tables needs neither network nor plotting."""

from tests.support.calls import python

HEAVY = {"torch", "torchvision", "ray", "optuna", "matplotlib", "scipy.stats", "sklearn", "typst"}
LIGHT = ("core.data.images", "analysis.gradcam", "analysis.studies.norms.sections",
         "analysis.studies.batch_size.sections", "analysis.studies.search.sections")  # fmt: skip


def test_what_only_reads_and_counts_imports_nothing_heavy():
    program = (
        "import importlib, sys\nfor name in sys.argv[2:]:\n    importlib.import_module(name)\n"
    )
    program += "    print(name, *sorted({*sys.argv[1].split(), 'jinja2'} & sys.modules.keys()))"
    done = python("-c", program, " ".join(HEAVY), *LIGHT, check=True)
    assert done.stdout.splitlines() == list(LIGHT)
