"""The rank browser without a browser: order, pages, search, marks, and what it refuses."""

import html
import json
import re
import shutil
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import browse
from analysis.browser import page as ranking_page
from analysis.browser import server
from analysis.results import pictures, ranking
from analysis.results.folder import load, load_predictions
from core.errors import UserError
from tests.support import results as built
from tests.support.calls import start


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def client_of(study, root=None):
    return server.make_app(ranking_page.Shown(load(study), root)).test_client()


@pytest.fixture
def client(study, root):
    return client_of(study, root)


def tiles(page: str) -> list[dict]:
    found = []
    for part in re.findall(r'<li class="tile.*?</li>', page, re.S):
        known = dict(re.findall(r'data-(\w+)="([^"]*)"', part))
        known["kind"] = re.search(r'class="tile (\w+)"', part)[1]
        known["mark"] = html.unescape(re.search(r'class="mark">([^<]*)', part)[1])
        known["file"] = re.search(r'title="([^"]*)"', part)[1]
        known["text"] = html.unescape(re.sub(r"<[^>]+>", " ", part))
        found.append(known)
    return found


def get(client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return answer.text


def numbers(page: str) -> list[int]:
    return [int(tile["number"]) for tile in tiles(page)]


@pytest.mark.parametrize("order", ["top", "bottom"])
@pytest.mark.parametrize("name", built.VOC_CLASSES)
def test_all_pages_of_a_class_follow_its_scores(client, stored, order, name):
    scores = stored.scores[:, stored.classes.index(name)]
    pages = (get(client, f"/?class={name}&order={order}&page={page}") for page in (1, 2, 3))
    shown = [tile for page in pages for tile in tiles(page)]
    found = [int(tile["number"]) for tile in shown]
    assert sorted(found) == list(range(len(scores)))  # every image once
    expected = np.sort(scores)[:: -1 if order == "top" else 1]
    np.testing.assert_array_equal(scores[found], expected)
    assert [np.float32(tile["score"]) for tile in shown] == list(scores[found])
    assert [tile["file"] for tile in shown] == [stored.files[number] for number in found]


def test_the_first_page_is_class_0_from_the_top_and_pages_have_50(client):
    page = get(client, "/")
    assert "<h2>aeroplane: highest scores first, images 1 to 50 of 130</h2>" in page
    assert len(tiles(page)) == 50 and len(tiles(get(client, "/?page=3"))) == 30
    assert 'aria-current="true">Top 50' in page and 'rel="prev"' not in page
    last = get(client, "/?page=99")  # past the end: the last page
    assert "images 101 to 130 of 130" in last and 'rel="next"' not in last


def test_marks_labels_and_the_point_follow_the_threshold(client, stored):
    label = stored.classes.index("dog")
    scores, signs = stored.scores[:, label], stored.labels[:, label]
    for threshold in (0.0, 1.25):
        seen = set()
        for page in (1, 2, 3):
            text = get(client, f"/?class=dog&threshold={threshold}&page={page}")
            for tile in tiles(text):
                number = int(tile["number"])
                right = (scores[number] > threshold) == (signs[number] == 1)
                kind = "ignored" if signs[number] == 0 else "right" if right else "wrong"
                assert tile["kind"] == kind
                sign = {"right": "✓ right", "wrong": "✗ wrong", "ignored": "○ not counted"}[kind]
                assert tile["mark"].startswith(sign)  # a sign and a word, not a colour alone
                seen.add(kind)
                for c, other in enumerate(stored.classes):
                    listed = other in tile["text"].split(tile["mark"])[1].split("2008")[0]
                    assert listed == (stored.labels[number, c] != -1)
        assert seen == {"right", "wrong", "ignored"}
        counted = signs != 0
        hits = int(((scores > threshold) & (signs == 1)).sum())
        above = int(((scores > threshold) & counted).sum())
        point = client.get(f"/point?class=dog&threshold={threshold}").json["text"]
        assert f"precision {100 * hits / above:.1f}\u00a0% ({hits} of {above} above it" in point
        present = int((signs == 1).sum())
        assert f"recall {100 * hits / present:.1f}\u00a0% ({hits} of {present} with dog)" in point
        assert point in html.unescape(text)
    assert "precision undefined" in client.get("/point?class=dog&threshold=99").json["text"]


def test_search_keeps_rank_and_order(client, stored):
    page = get(client, "/?class=dog&find=V0001")  # any case
    order = ranking.ranking(stored.scores[:, stored.classes.index("dog")]).tolist()
    found = tiles(page)
    assert len(found) == 10 and all("v0001" in tile["file"] for tile in found)
    places = [order.index(int(tile["number"])) for tile in found]
    assert places == sorted(places)
    assert all(f"#{place + 1}" in tile["text"] for place, tile in zip(places, found, strict=True))
    nothing = get(client, "/?class=dog&find=<b>nothing")
    assert "No file name holds “&lt;b&gt;nothing”" in nothing and not tiles(nothing)


def test_addresses_keep_everything_that_is_shown(client, study):
    first = ranking_page.Shown(load(study), None).first
    other = next(name for name in load(study).with_predictions() if name != first)
    page = get(client, f"/?class=dog&order=bottom&find=v0&threshold=0.5&page=2&trial={other}")
    links = [html.unescape(link) for link in re.findall(r'href="(/\?[^"]*)"', page)]
    assert len(links) == 5  # top, bottom, back, forward, show all
    for link in links:
        assert "class=dog" in link and "threshold=0.5" in link and "trial=seed%3D" in link
    assert "images 51 to 100 of 130" in page and "images 1 to 50" in get(client, links[2])
    # what an address spells wrongly falls back; what it names wrongly is said
    assert "images 1 to 50" in get(client, "/?page=x&order=sideways&threshold=nan")
    assert client.get("/?class=unicorn").status_code == 404
    assert client.get("/?trial=none").status_code == 404


def test_hosts_methods_and_headers(client):
    for host in ("127.0.0.1:8000", "localhost", "localhost:5000"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.1.5:8000"):
        assert client.get("/", headers={"Host": host}).status_code == 400
    for method in ("post", "put", "delete", "patch"):
        for address in ("/", "/point", "/image/0/0"):
            assert getattr(client, method)(address).status_code == 405
    answer = client.get("/", headers={"Origin": "https://evil.example"})
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert not [key for key, _ in answer.headers if key.startswith("Access-Control")]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "http" not in re.sub(r"<!doctype.*?>", "", answer.text)  # nothing from elsewhere


def test_images_are_thumbnails_made_once(client, root, cache):
    answer = client.get("/image/0/3")
    assert answer.status_code == 200 and answer.mimetype == "image/jpeg"
    (kept,) = (cache / "thumbnails").rglob("*.jpg")
    assert kept.read_bytes() == answer.data
    with Image.open(kept) as image:
        assert image.size == (256, 256)
    kept.write_bytes(b"from the cache")
    assert client.get("/image/0/3").data == b"from the cache"
    assert client.get("/image/0/0/large").status_code == 200
    assert not list((cache / "thumbnails").rglob("*.tmp"))


def hostile(folder, root, files):
    """Return a client for predictions that name `files`."""
    study = built.voc(folder / "voc" / "hostile", images=len(files), seeds=1)
    path = study / "predictions" / "seed=0.npz"
    with np.load(path) as content:
        known = dict(content)
    np.savez(path, **known | {"files": np.array(files)})
    return client_of(study, root)


def test_nothing_outside_the_root_is_served(tmp_path):
    root = tmp_path / "root"
    built.draw_images(root, 2)
    outside = built.draw_images(tmp_path / "outside", 1) / built.names(1, "v")[0]
    inside = built.names(2, "v")[1]
    (root / "link.jpg").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "near.jpg").symlink_to(inside)
    (root / "page.jpg").write_text("<script>alert(1)</script>")
    files = [
        inside, "near.jpg", f"../outside/{built.names(1, 'v')[0]}", str(outside),
        "/etc/passwd", "../../../../etc/passwd", "link.jpg", f"folder/{outside.name}", "loop.jpg",
        "page.jpg", "VOC2012", "", "absent.jpg", "a\0b.jpg", "~root/.bashrc", "..", "x" * 5000,
        f"./VOC2012/../../outside/{built.names(1, 'v')[0]}", "file:///etc/passwd",
    ]  # fmt: skip
    client = hostile(tmp_path, root, files)
    for number, _ in enumerate(files):
        for size in ("", "/large"):
            status = client.get(f"/image/0/{number}{size}").status_code
            assert status == (200 if number < 2 else 404), files[number]
    page = get(client, "/")
    # the page that is no picture is there as a file; the others are placeholders
    assert page.count("no image") == len(files) - 3


@pytest.mark.parametrize(
    "address",
    [
        "/image/0/../../../etc/passwd", "/image/0/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image/0/..%5c..%5cetc%5cpasswd", "/image/0//etc/passwd", "/image/0/-1", "/image/-1/0",
        "/image/0/999999", "/image/99/0", "/image/0/0%00", "/image/0/1e3", "/image/0/0x1",
        "/image/0/99999999999999999999999999", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/browse.css/../../browse.py", "/static/browse.css", "/templates/browse.html.j2",
    ],
)  # fmt: skip
def test_addresses_that_are_no_images_are_refused(client, address):
    answer = client.get(address)
    assert answer.status_code in (404, 308) and "root:" not in answer.text
    if answer.status_code == 308:
        assert client.get(answer.headers["Location"]).status_code == 404
    assert answer.status_code == 308 or answer.mimetype == "text/plain"


def test_works_without_images(study):
    client = client_of(study)
    page = get(client, "/?class=dog")
    assert page.count("no image") == 50 and "<img" not in page and "--data-dir" in page
    assert client.get("/image/0/0").status_code == 404


@pytest.mark.parametrize("level", ["VOC2012", ".", ".."])
def test_the_root_may_be_given_at_another_level(study, root, level):
    assert client_of(study, root / level).get("/image/0/0").status_code == 200


def test_class_names_and_files_are_escaped(tmp_path):
    classes = ('<img src=x onerror="alert(1)">', "a&b", "dog'); --")
    study = built.voc(tmp_path / "voc" / "x", images=10, classes=classes)
    client = client_of(study)
    page = get(client, "/")
    assert "<img" not in page and "&lt;img src=x" in page
    ranked = ranking_page.Shown(load(study), None)
    for label, name in enumerate(classes):
        page = get(client, ranking_page.address(ranked, ranking_page.View(ranked.first, label)))
        title = re.search(r"<h2>([^<]*)", page)[1]
        assert html.unescape(title).startswith(name)


def test_shows_the_birds_study(tmp_path):
    study = built.norms(tmp_path / "norms" / "demo", seeds=1)
    page = get(client_of(study), "/?class=Hoopoe")
    stored = load_predictions(study, ranking_page.Shown(load(study), None).first)
    label = stored.classes.index("Hoopoe")
    assert numbers(page) == ranking.ranking(stored.scores[:, label])[:50].tolist()
    assert "Hoopoe" in tiles(page)[0]["text"] and "10 images with Hoopoe, 240 without" in page


def test_the_best_trial_comes_first(study):
    table = load(study).trials
    best = table.loc[table["best_val_map"].idxmax(), "trial"]
    shown = ranking_page.Shown(load(study), None)
    assert shown.first == best
    other = next(name for name in shown.trials if name != best)
    assert ranking_page.Shown(load(study), None, other).first == other
    with pytest.raises(UserError, match="--trial x"):
        ranking_page.Shown(load(study), None, "x")


def test_what_cannot_be_shown_is_refused(study, tmp_path, capsys):
    bare = shutil.copytree(study, tmp_path / "bare", ignore=shutil.ignore_patterns("*.npz"))
    assert browse.main([str(bare), "--no-open"]) == 2
    assert "nothing to show" in capsys.readouterr().err
    assert browse.main([str(tmp_path / "absent"), "--no-open"]) == 2
    assert browse.main([str(study), "--no-open", "--data-dir", str(tmp_path / "absent")]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert browse.main([str(study), "--no-open", "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err
    assert browse.main([str(study), "--no-open", "--port", "70000"]) == 2


def test_the_noted_root_is_used(study, root, tmp_path):
    assert pictures.find_root(load(study)) is None
    noted = shutil.copytree(study, tmp_path / "noted")
    (noted / ".private.json").write_text(json.dumps({"data_dir": str(root)}))
    assert pictures.find_root(load(noted)) == root


def test_export_opens_without_a_server(study, stored, root, tmp_path):
    folder = tmp_path / "top50"
    assert browse.main([str(study), "--data-dir", str(root), "--export", str(folder)]) == 0
    pages = sorted(folder.glob("*.html"))
    assert len(pages) == 2 * len(built.VOC_CLASSES) + 1
    needed = set()
    for label, name in enumerate(stored.classes):
        order = ranking.ranking(stored.scores[:, label])
        for side, expected in (("top", order[:50]), ("bottom", order[::-1][:50])):
            text = (folder / f"{label:03d}-{name}-{side}.html").read_text()
            assert numbers(text) == expected.tolist()
            needed |= set(expected.tolist())
    assert len(list((folder / "images").iterdir())) == len(needed)
    for page in pages:
        text = page.read_text()
        assert str(tmp_path) not in text and "<script" not in text and "<style>" in text
        for target in re.findall(r'(?:src|href)="([^"#]+)"', text):
            assert not target.startswith("/") and (folder / target).is_file(), target
    assert browse.main([str(study), "--export", str(folder)]) == 2  # never written over


def test_the_command_serves_on_loopback_and_loads_no_torch(study, root):
    with start("analysis/browse.py", study, "--data-dir", root, "--no-open") as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
            with urllib.request.urlopen(f"{address}?class=dog&order=bottom") as answer:
                assert "dog: lowest scores first" in answer.read().decode()
            listening = Path("/proc/net/tcp").read_text()
            port = f"{int(address.rstrip('/').rpartition(':')[2]):04X}"
            assert f"0100007F:{port} " in listening  # 127.0.0.1 and no other address
            loaded = Path(f"/proc/{process.pid}/maps").read_text()
            assert "libtorch" not in loaded and "sklearn" not in loaded
        finally:
            process.terminate()
