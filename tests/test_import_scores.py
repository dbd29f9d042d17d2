"""Scores of other programs as a result folder: layouts, joins, and what is refused."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from analysis import browse_page, import_scores, ranking, tail_accuracy, voc
from analysis.results import load, load_predictions

CLASSES = ("cat", "dog house")


def table(labels=(1, -1, 0, 1), prefix="score_", **more) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {"image": [f"a/{number}.jpg" for number in range(4)]}
    columns |= {f"{prefix}{name}": rng.normal(size=4).astype(np.float32) for name in CLASSES}
    if labels:
        columns |= {f"label_{name}": labels for name in CLASSES}
    return pd.DataFrame(columns | more)


def bring(tmp_path, frame, *options, name="theirs"):
    file = tmp_path / "scores.csv"
    frame.to_csv(file, index=False)
    command = [str(file), "--name", name, "--results-dir", str(tmp_path / "results"), *options]
    return import_scores.main(command), tmp_path / "results" / "voc" / name


def test_public_scores_give_the_published_map_and_load_everywhere(shared_data, tmp_path):
    file = shared_data.parent / "reference" / "voc2012-val-resnet18.csv.gz"
    command = [str(file), "--name", "resnet18", "--results-dir", str(tmp_path)]
    assert import_scores.main(command) == 0
    folder = tmp_path / "voc" / "resnet18"
    results = load(folder)
    assert results.trials["val_map"].item() == pytest.approx(0.844563, abs=5e-7)
    assert results.trials["val_accuracy"].item() == pytest.approx(0.974377, abs=5e-7)
    stored = load_predictions(folder, "imported")
    assert stored.scores.shape == (5823, 20) and stored.config["scores"] == "probabilities"
    assert set(np.unique(stored.labels)) == {-1, 1} and stored.files[0] == "2008_000002"
    found = tail_accuracy.tail_accuracy(
        stored.scores, stored.labels, np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    )
    expected = [0.8803, 0.8989, 0.9157, 0.9316, 0.9529, 0.9678]
    np.testing.assert_allclose(found.mean, expected, atol=5e-5)
    ap = pd.read_csv(shared_data.parent / "reference" / "voc2012-val-resnet18-ap.csv")
    voc.report(folder)
    ours = pd.read_csv(folder / "tables" / "average_precision.csv").iloc[:20]
    values = ap.select_dtypes("number").iloc[:20, 0].to_numpy()
    np.testing.assert_allclose(ours["best_ap"], values, atol=5e-6)
    client = browse_page.make_app(browse_page.Shown(results, None)).test_client()
    page = client.get("/?class=dog&order=bottom&page=7").text
    assert "images 301 to 350 of 5,823" in page


def test_names_below_a_real_devkit_are_found(shared_data, tmp_path):
    """The list's bare names, as 2008_000002, belong to JPEGImages/2008_000002.jpg."""
    labels = pd.read_csv(shared_data.parent / "reference" / "voc-labels.csv")
    frame = labels.astype({name: float for name in labels.columns[1:]})
    frame.iloc[:, 1:] = np.random.default_rng(0).normal(size=(len(labels), 20))
    labels.to_csv(tmp_path / "labels.csv", index=False)
    code, folder = bring(tmp_path, frame, "--labels", str(tmp_path / "labels.csv"))
    assert code == 0
    root = shared_data / "VOCdevkit"
    client = browse_page.make_app(browse_page.Shown(load(folder), root)).test_client()
    assert client.get("/image/0/0").status_code == 200
    assert "no image" not in client.get("/").text
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.labels, labels.iloc[:, 1:])


def test_scores_labels_and_names_are_kept(tmp_path):
    frame = table()
    code, folder = bring(tmp_path, frame, "--files", "VOC2012/{image}")
    assert code == 0
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.scores, frame.filter(like="score_").to_numpy())
    np.testing.assert_array_equal(stored.labels, frame.filter(like="label_").to_numpy())
    assert stored.files == tuple(f"VOC2012/a/{number}.jpg" for number in range(4))
    assert stored.classes == CLASSES and stored.config["scores"] == "logits"
    assert load(folder).trials["state"].item() == "finished"
    assert str(tmp_path) not in json.dumps(stored.config)


def test_zeros_mean_absent_where_nothing_is_negative(tmp_path):
    _, folder = bring(tmp_path, table(labels=(1, 0, 0, 1)))
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.labels[:, 0], [1, -1, -1, 1])


def test_labels_of_their_own_are_joined_by_name(tmp_path):
    labels = table()[["image", "label_dog house", "label_cat"]].iloc[::-1]
    labels["label_cat"] = [1, 1, -1, -1]
    labels.columns = ["name", "dog house", "label_cat"]
    with gzip.open(tmp_path / "labels.csv.gz", "wt") as file:
        labels.to_csv(file, index=False)
    frame = table(labels=(), prefix="")
    code, folder = bring(tmp_path, frame, "--labels", str(tmp_path / "labels.csv.gz"))
    assert code == 0
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.labels, [[-1, 1], [-1, -1], [1, 0], [1, 1]])


def test_what_scores_are_can_be_said(tmp_path):
    probabilities = table()
    probabilities.iloc[:, 1:3] = [[0.2, 0.9], [0.4, 0.1], [0.6, 0.2], [0.8, 0.3]]
    _, folder = bring(tmp_path, probabilities, name="a")
    assert load_predictions(folder, "imported").config["scores"] == "probabilities"
    _, folder = bring(tmp_path, probabilities, "--logits", name="b")
    stored = load_predictions(folder, "imported")
    assert stored.config["scores"] == "logits"
    assert ranking.decision_threshold(stored.scores, stored.config["scores"]) == 0
    shown = browse_page.Shown(load(folder), None)
    assert shown.ranked("imported").cut == 0


def test_the_same_files_give_the_same_predictions(tmp_path):
    _, first = bring(tmp_path, table(), name="a")
    _, second = bring(tmp_path, table(), name="b")
    name = "predictions/imported.npz"
    assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    ("frame", "options", "words"),
    [
        (table(labels=()), (), "label_cat"),
        (table(labels=(), prefix=""), (), "score_<class>"),
        (table(labels=(1, 2, 0, 1)), (), "labels must be 1"),
        (table(score_cat=[0.1, "x", 0.2, 0.3]), (), "row 3 holds 'x'"),
        (table(score_cat=[0.1, np.inf, 0.2, 0.3]), (), "score_cat, row 3"),
        (table(score_cat=[0.1, None, 0.2, 0.3]), (), "row 3 holds ''"),
        (table(image=["a", "a", "b", "c"]), (), "a has several rows"),
        (table(image=["../a", "a", "b", "c"]), (), "relative to the data root"),
        (table(image=["/etc/passwd", "a", "b", "c"]), (), "relative to the data root"),
        (table(), ("--files", "x.jpg"), "{image}"),
        (table(), ("--logits", "--probabilities"), "exclude each other"),
        (table(), ("--probabilities",), "outside [0, 1]"),
        (table(), ("--labels", "absent.csv"), "absent.csv: there is no such file"),
        (table(), ("--study", "../voc"), "--study ../voc"),
        (table().iloc[:0], (), "rows are needed"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path, capsys, frame, options, words):
    code, folder = bring(tmp_path, frame, *options)
    said = capsys.readouterr().err
    assert code == 2 and words in said and said.count("\n") == 1
    assert not folder.exists()


def test_damaged_files_and_existing_folders_are_refused(tmp_path, capsys):
    bad = tmp_path / "bad.csv.gz"
    bad.write_bytes(gzip.compress(table().to_csv(index=False).encode())[:-20])
    command = [str(bad), "--name", "x", "--results-dir", str(tmp_path)]
    assert import_scores.main(command) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert bring(tmp_path, table())[0] == 0 and bring(tmp_path, table())[0] == 2
    assert "choose another --name" in capsys.readouterr().err
