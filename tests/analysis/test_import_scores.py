"""Scores of other programs as a result folder: layouts, joins, and what is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from analysis import import_scores
from analysis.browser import page as ranking_page
from analysis.browser import server
from analysis.results import ranking
from analysis.results.folder import load, load_predictions
from analysis.studies.voc import sections
from tests.support.reports import table_of, told

CLASSES = ("cat", "dog house")


def table(labels=(1, -1, 0, 1), prefix="score_", **more) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {"image": [f"a/{number}.jpg" for number in range(4)]}
    columns |= {f"{prefix}{name}": rng.normal(size=4).astype(np.float32) for name in CLASSES}
    if labels:
        columns |= {f"label_{name}": labels for name in CLASSES}
    return pd.DataFrame(columns | more)


def bring(tmp_path, frame, *options, name="theirs", code=0) -> Path:
    """Import a table or a text, which must end with `code`; return where its folder is to be."""
    file = tmp_path / "scores.csv"
    file.write_text(frame if isinstance(frame, str) else frame.to_csv(index=False))
    command = [str(file), "--name", name, "--results-dir", str(tmp_path / "results"), *options]
    assert import_scores.main(command) == code
    return tmp_path / "results" / "voc" / name


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
    ap = pd.read_csv(shared_data.parent / "reference" / "voc2012-val-resnet18-ap.csv")
    told(sections.report, folder)
    ours = table_of(folder, "average_precision").iloc[:20]
    values = ap.select_dtypes("number").iloc[:20, 0].to_numpy()
    np.testing.assert_allclose(ours["best_ap"], values, atol=5e-6)
    client = server.make_app(ranking_page.Shown(results, None)).test_client()
    assert "images 301 to 350 of 5,823" in client.get("/?class=dog&order=bottom&page=7").text


def test_names_below_a_real_devkit_are_found(shared_data, tmp_path):
    """The list's bare names, as 2008_000002, belong to JPEGImages/2008_000002.jpg."""
    labels = pd.read_csv(shared_data.parent / "reference" / "voc-labels.csv")
    frame = labels.astype({name: float for name in labels.columns[1:]})
    frame.iloc[:, 1:] = np.random.default_rng(0).normal(size=(len(labels), 20))
    labels.to_csv(tmp_path / "labels.csv", index=False)
    folder = bring(tmp_path, frame, "--labels", str(tmp_path / "labels.csv"))
    root = shared_data / "VOCdevkit"
    client = server.make_app(ranking_page.Shown(load(folder), root)).test_client()
    assert client.get("/image/0/0").status_code == 200
    assert "no image" not in client.get("/").text
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.labels, labels.iloc[:, 1:])


def test_scores_labels_and_names_are_kept_to_the_same_bytes(tmp_path):
    frame = table()
    folder = bring(tmp_path, frame, "--files", "VOC2012/{image}")
    stored = load_predictions(folder, "imported")
    written = [[float(str(x)) for x in row] for row in frame.filter(like="score_").to_numpy()]
    np.testing.assert_array_equal(stored.scores, written)
    np.testing.assert_array_equal(stored.labels, frame.filter(like="label_").to_numpy())
    assert stored.files == tuple(f"VOC2012/a/{number}.jpg" for number in range(4))
    assert stored.classes == CLASSES and stored.config["scores"] == "logits"
    assert load(folder).trials["state"].item() == "finished"
    assert str(tmp_path) not in json.dumps(stored.config)
    again = bring(tmp_path, frame, "--files", "VOC2012/{image}", name="again")
    kept = "predictions/imported.npz"
    assert (again / kept).read_bytes() == (folder / kept).read_bytes()


def test_what_a_zero_means_is_said(tmp_path, capsys):
    frame = table(labels=(1, 0, 0, 1))
    for options, zero in (((), -1), (("--zero", "absent"), -1), (("--zero", "ignored"), 0)):
        folder = bring(tmp_path, frame, *options, name=f"n{len(options)}{zero}")
        stored = load_predictions(folder, "imported")
        np.testing.assert_array_equal(stored.labels[:, 0], [1, zero, zero, 1])
        assert stored.config["zero"] == ("ignored" if zero == 0 else "absent")
        assert ("0 is taken for absent" in capsys.readouterr().out) == (not options)
    assert "0 is taken for absent" in load(tmp_path / "results/voc/n0-1").study["data"]["notes"][0]
    bring(tmp_path, table(), name="mixed")  # labels 1, -1, 0, 1: said as well
    assert "0 is taken for ignored (2 labels" in capsys.readouterr().out
    folder = bring(tmp_path, table(), "--zero", "absent", name="all")
    assert "0 is taken for" not in capsys.readouterr().out
    assert load_predictions(folder, "imported").labels[:, 0].tolist() == [1, -1, -1, 1]


def test_scores_are_ranked_as_the_file_has_them(tmp_path):
    """Near 1 float32 has ties that the file's numbers do not have (AP 0.73 and 0.69 there)."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (40, 2))
    scores = 1 / (1 + np.exp(-17 - truth - rng.normal(0, 0.7, (40, 2))))
    frame = pd.DataFrame({"image": np.arange(40)} | {f"score_{c}": scores[:, c] for c in (0, 1)})
    folder = bring(tmp_path, frame.assign(label_0=truth[:, 0], label_1=truth[:, 1]))
    assert len(np.unique(scores.astype(np.float32))) < 15
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in (0, 1)]
    assert load(folder).trials["val_map"].item() == np.mean(expected)
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.scores, scores)
    ranked = ranking_page.Shown(load(folder), None).ranked("imported")
    np.testing.assert_array_equal(ranked.order(0), np.argsort(-scores[:, 0]))
    told(sections.report, folder)
    ours = table_of(folder, "average_precision")
    assert ours["best_ap"].tolist()[:2] == expected


def test_tables_as_programs_write_them(tmp_path):
    frame = table(labels=(1, -1, 1, -1))
    numbers = frame.drop(columns="image")
    written = {
        "plain": frame.to_csv(index=False),
        "pandas_index": frame.to_csv(),
        "pandas_index_twice": frame.reset_index(names="Unnamed: 0").to_csv(),
        "pandas_names": frame.set_index("image").rename_axis(None).to_csv(),
        "file": frame.rename(columns={"image": "file"}).to_csv(),
        "semicolons": frame.to_csv(index=False, sep=";"),
        "tabs": frame.to_csv(index=False, sep="\t"),
        "mark": "\ufeff" + frame.to_csv(index=False),
        "image_last": frame[[*frame.columns[1:], "image"]].to_csv(index=False),
        "blank": frame.to_csv(index=False, lineterminator="\r\n") + "\r\n,,,,\r\n",
        "commas": numbers.rename_axis("image").to_csv(sep=";", decimal=","),
    }
    found = {}
    for name, text in written.items():
        found[name] = load_predictions(bring(tmp_path, text, name=name), "imported")
        if name != "commas":
            assert found[name].files == tuple(frame["image"]), name
        np.testing.assert_array_equal(found[name].scores, found["plain"].scores)
        np.testing.assert_array_equal(found[name].labels, found["plain"].labels)
    file = tmp_path / "wide.csv"
    file.write_text(frame.to_csv(index=False, sep="\t"), encoding="utf-16")
    assert import_scores.read(file).images == tuple(frame["image"])


def test_labels_of_their_own_are_joined_by_name(tmp_path):
    labels = table()[["image", "label_dog house", "label_cat"]].iloc[::-1]
    labels["label_cat"] = [1, 1, -1, -1]
    labels.columns = ["name", "dog house", "label_cat"]
    with gzip.open(tmp_path / "labels.csv.gz", "wt") as file:
        labels.to_csv(file, index=False)
    frame = table(labels=(), prefix="")
    folder = bring(tmp_path, frame, "--labels", str(tmp_path / "labels.csv.gz"))
    stored = load_predictions(folder, "imported")
    np.testing.assert_array_equal(stored.labels, [[-1, 1], [-1, -1], [1, 0], [1, 1]])


def test_what_scores_are_can_be_said(tmp_path):
    probabilities = table()
    probabilities.iloc[:, 1:3] = [[0.2, 0.9], [0.4, 0.1], [0.6, 0.2], [0.8, 0.3]]
    folder = bring(tmp_path, probabilities, name="a")
    assert load_predictions(folder, "imported").config["scores"] == "probabilities"
    folder = bring(tmp_path, probabilities, "--logits", name="b")
    stored = load_predictions(folder, "imported")
    assert stored.config["scores"] == "logits"
    assert ranking.decision_threshold(stored.scores, stored.config["scores"]) == 0
    shown = ranking_page.Shown(load(folder), None)
    assert shown.ranked("imported").cut == 0


@pytest.mark.parametrize(
    ("frame", "options", "words"),
    [
        (table(labels=()), (), "label_cat"),
        (table(labels=(), prefix=""), (), "score_<class>"),
        (table(labels=(1, 2, 0, 1)), (), "labels must be 1"),
        (table(score_cat=[0.1, "x", 0.2, 0.3]), (), "line 3, column score_cat: 'x' is not"),
        (table(score_cat=[0.1, np.inf, 0.2, 0.3]), (), "line 3, column score_cat: 'inf'"),
        (table(score_cat=[0.1, None, 0.2, 0.3]), (), "line 3, column score_cat: ''"),
        (table(score_cat=[0.1, 0.2, "1e400", 0.3]), (), "line 4, column score_cat: '1e400' is"),
        (table(score_cat=["nan", 0.2, 0.1, 0.3]), (), "line 2, column score_cat: 'nan' is"),
        (table(score_cat=[0.1, 0.2, 0.1, "1e-400"]), (), "line 5, column score_cat: '1e-400' is"),
        (table(score_cat=["0,1", 0.2, 0.1, 0.3]), (), "line 2, column score_cat: '0,1' is"),
        (table(label_cat=[1, "abc", 1, 1]), (), "line 3, column label_cat: 'abc'"),
        (table(label_cat=[1, 1, 1, 0.5]), (), "line 5, column label_cat: '0.5': labels must"),
        (table(image=[0, 1, 2, 3]).rename(columns={"image": ""}), (), "no column names the im"),
        (table(**{"": [1, 2, 3, 5]}).assign(file=1).iloc[:, [6, 1, 2, 3, 4, 5]], (), "column 6"),
        (table().rename(columns={"label_cat": "score_cat"}), (), "score_cat is there twice"),
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
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path, capsys, frame, options, words):
    folder = bring(tmp_path, frame, *options, code=2)
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not folder.exists()


def test_damaged_files_and_existing_folders_are_refused(tmp_path, capsys):
    bad = tmp_path / "bad.csv.gz"
    bad.write_bytes(gzip.compress(table().to_csv(index=False).encode())[:-20])
    command = [str(bad), "--name", "x", "--results-dir", str(tmp_path)]
    assert import_scores.main(command) == 2
    assert "cannot be read" in capsys.readouterr().err
    for code in (0, 2):
        bring(tmp_path, table(), code=code)
    assert "choose another --name" in capsys.readouterr().err
