"""Devkits in tar archives: read as published, refused whole, downloaded."""

from __future__ import annotations

import hashlib
import tarfile

import pytest
from torchvision.datasets.voc import DATASET_YEAR_DICT

from core.data import archive as voc_archive
from core.data import devkit, voc
from tests.support.calls import error_of
from tests.support.datasets import pack, served


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, int(kind == tarfile.REGTYPE)
    return info


def test_a_published_archive_is_read_as_it_is(small, tmp_path):
    archive = pack(small, tmp_path / "VOCtrainval_11-May-2012.tar")
    s = voc.load(archive, 8)["train"]
    assert s.files[0] == "VOCdevkit/VOC2012/JPEGImages/a.jpg"
    assert (devkit.open_root(archive) / s.files[0]).is_file()
    assert devkit.open_root(archive).is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped"), member("VOCdevkit/../../escaped"), member("/tmp/escaped"),
        member("VOCdevkit/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("VOCdevkit/link", tarfile.SYMTYPE, "VOC2012"),
        member("VOCdevkit/link", tarfile.LNKTYPE, "../../etc/passwd"),
        member("VOCdevkit/device", tarfile.CHRTYPE), member("VOCdevkit/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda m: f"{m.name} {m.linkname}",
)  # fmt: skip
def test_an_archive_that_reaches_outside_is_refused_whole(small, tmp_path, bad):
    told = error_of(voc.load, pack(small, tmp_path / "bad.tar", bad), 8)
    assert "bad.tar: " in told and "refused" in told
    assert not list((tmp_path / "cache").rglob("*.xml"))
    assert not list(tmp_path.rglob("escaped"))


def test_a_cut_archive_is_refused(small, tmp_path):
    archive = pack(small, tmp_path / "cut.tar")
    archive.write_bytes(archive.read_bytes()[:5000])
    assert "cut.tar" in error_of(voc.load, archive, 8)


@pytest.fixture
def published(small, tmp_path, monkeypatch):
    """Serve the small devkit as VOC 2012's archive."""
    archive = pack(small, tmp_path / "served.tar")
    with served(tmp_path) as address:
        known = {
            "url": f"{address}served.tar",
            "filename": "VOC.tar",
            "md5": hashlib.md5(archive.read_bytes()).hexdigest(),
            "base_dir": "VOCdevkit/VOC2012",
        }
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setitem(DATASET_YEAR_DICT, "2012", known)
        yield known


def test_a_download_is_checked_and_unpacked(published, tmp_path):
    there = tmp_path / "there"
    right, published["md5"] = published["md5"], "0" * 32
    told = error_of(voc_archive.download, there)
    assert "VOC.tar is not the published archive" in told
    assert not (there / "VOCdevkit").exists()
    published["md5"] = right
    voc_archive.download(there)
    assert voc.load(there, 8)["val"].files == ("VOCdevkit/VOC2012/JPEGImages/c.jpg",)
    voc_archive.download(there)  # a second time there is nothing to do


def test_a_download_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    told = error_of(voc_archive.download, tmp_path / "there")
    assert "cannot be reached" in told and "VOCtrainval_11-May-2012.tar else" in told
    assert "year=1999" in error_of(voc_archive.download, tmp_path / "there", "1999")
