"""Pascal VOC's published archives: fetched with a checksum, unpacked without trust."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import urllib.error
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock

from core.errors import UserError
from core.storage.cache import cache_dir, cache_errors, filled

_MOST_FILES = 200_000  # VOC 2012 has 40 thousand
_MOST_BYTES = 20 << 30  # VOC 2012 has 2 GB


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive, compressed or not."""
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


def unpacked(archive: Path) -> Path:
    """Return a folder in the cache with what `archive` holds, unpacked on first use.

    Raises `UserError` as `extract` does, or where the cache cannot be written.
    """
    status = archive.stat()
    told = f"{archive}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_dir() / "archives" / hashlib.sha256(os.fsencode(told)).hexdigest()[:32]
    return filled(folder, lambda unfinished: extract(archive, unfinished))


def extract(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of plain files and folders into the new folder `folder`.

    Every member is looked at before the first is written. Raises UserError: a member is a link or
    device or lies outside the folder, there are too many, or the archive is damaged. Raises
    OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            members = list(_checked(archive, tar, folder))
            tar.extractall(folder, members, filter="data")
    except (tarfile.TarError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{archive} is damaged ({e}): fetch it again") from e


def _checked(archive: Path, tar: tarfile.TarFile, folder: Path) -> Iterator[tarfile.TarInfo]:
    total = 0
    for number, member in enumerate(tar, 1):
        shown = member.name.encode("utf-8", "backslashreplace").decode()[:200]
        total += member.size
        if number > _MOST_FILES or total > _MOST_BYTES:
            raise UserError(f"{archive} holds more than VOC ever did: unpack it yourself")
        if not (member.isfile() or member.isdir()):
            raise UserError(f"{archive}: {shown} is a link or device: refused, nothing is unpacked")
        if member.name.startswith(("/", "\\")) or ".." in Path(member.name).parts:
            raise UserError(f"{archive}: {shown} lies outside: refused, nothing is unpacked")
        try:
            tarfile.data_filter(member, str(folder))
        except tarfile.FilterError as e:
            raise UserError(f"{archive}: {shown} is refused ({e}); nothing is unpacked") from e
        yield member


def download(folder: Path, year: str = "2012") -> None:
    """Fetch a year's archive into `folder`, check its MD5 and unpack it there, if need be.

    Raises UserError: an unknown year, no network, or what came is not the archive.
    """
    from torchvision.datasets.utils import download_url  # seconds to import, seldom needed
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    if year not in DATASET_YEAR_DICT:
        raise UserError(f"--set year={year}: --download has {', '.join(DATASET_YEAR_DICT)}")
    known = DATASET_YEAR_DICT[year]
    lock = cache_dir() / f"download-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.lock"
    with cache_errors():
        lock.parent.mkdir(parents=True, exist_ok=True)
    inside = Path(known["base_dir"])
    with FileLock(lock), _written(folder, known):
        if not (folder / inside).is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            download_url(known["url"], str(folder), known["filename"], known["md5"])
            _install(folder / known["filename"], folder, inside)


@contextlib.contextmanager
def _written(folder: Path, known: Mapping[str, str]) -> Iterator[None]:
    """Say in one sentence why an archive cannot be fetched into a folder or unpacked there."""
    try:
        yield
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
        raise UserError(
            f"--download: {known['url']} cannot be reached ({getattr(e, 'reason', e)}): fetch"
            f" {known['filename']} elsewhere and give it as --data-dir"
        ) from e
    except RuntimeError as e:
        raise UserError(
            f"--download: {folder / known['filename']} is not the published archive (MD5"
            f" {known['md5']}): delete it and try again"
        ) from e
    except OSError as e:
        raise UserError(f"--download: cannot write {folder} ({e.strerror or e})") from e


def _install(archive: Path, folder: Path, inside: Path) -> None:
    """Unpack `archive` beside the other years in `folder`."""
    unfinished = folder / ".unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        extract(archive, unfinished)
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        os.replace(unfinished / inside, folder / inside)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
