"""A result folder in an object store: a local folder whose files are kept there as well.

The engine, its trials and the analysis work on plain files. When results go to `s3://...`, each
node has a local copy; `core.storage.files` sends every file there as it is written (an object
appears whole or not at all), and what another node wrote is fetched when it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from core.errors import StorageError, UserError, refused

if TYPE_CHECKING:
    from filelock import FileLock

SCHEMES = ("s3", "gs")
_attached: dict[Path, Mirror] = {}


class Mirror:
    """A local folder and the place in an object store that holds the same files.

    Raises UserError: not a place in an object store.

    Args:
        uri: such as `s3://bucket/results?endpoint_override=http://host:port`.
        below: what is mirrored, as a path below `uri`.
        local: the local folder; one of its own below the user's cache by default.
    """

    def __init__(self, uri: str, below: str = "", local: Path | None = None):
        self.uri, self.below = uri, below
        base, mark, query = uri.partition("?")
        self.shown = "/".join(part for part in (base.rstrip("/"), below) if part)
        self.address = self.shown + mark + query
        base = os.environ.get("LABTUNE_MIRROR")
        base = base or f"{tempfile.gettempdir()}/labtune-results-{os.getuid()}"
        self.local = local or Path(base, hashlib.sha256(self.address.encode()).hexdigest()[:16])

    def __reduce__(self) -> tuple:
        """Travel to other nodes by name: each has its own connection and its own folder."""
        return Mirror, (self.uri, self.below)

    @functools.cached_property
    def _store(self) -> tuple[Any, str]:
        from pyarrow import fs

        try:
            return fs.FileSystem.from_uri(self.address)
        except (OSError, ValueError) as e:
            raise UserError(f"--results-dir {self.shown}: {_reason(e)}") from e

    def check(self, name: str) -> None:
        """Write, read and delete an object, or raise StorageError: no store there, or no rights."""
        with self._told("use"):
            store, path = self._object(f".check-{name}")
            with store.open_output_stream(path) as stream:
                stream.write(b"x")
            with store.open_input_stream(path) as stream:
                whole = stream.read() == b"x"
            store.delete_file(path)
        if not whole:
            raise StorageError(f"{self.shown} gives back other bytes than it was given")

    def lock(self) -> FileLock:
        """Return the lock of who uses the local folder as a driver: `pull` empties it."""
        with _here(self.local):
            self.local.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock  # here: it brings asyncio, which --help does without

        return FileLock(self.local.with_suffix(".lock"), timeout=0)

    @contextlib.contextmanager
    def copied(self) -> Iterator[Mirror]:
        """Yield the same place with a local folder of its own, which goes at the end."""
        with tempfile.TemporaryDirectory(prefix="labtune-copy-") as folder:
            yield Mirror(self.uri, self.below, Path(folder) / "copy")

    def push(self, path: Path) -> None:
        """Send one local file, or raise StorageError."""
        with _here(path):
            data = path.read_bytes()
        with self._told("write"):
            store, name = self._object(path.relative_to(self.local))
            with store.open_output_stream(name) as stream:
                stream.write(data)

    def contents(self) -> dict[Path, tuple[int, int]]:
        """Return every local file with its size and time of change, in nanoseconds."""
        files = sorted(p for p in self.local.rglob("*") if p.is_file())
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in files}

    def push_tree(
        self, before: Mapping[Path, tuple[int, int]], *, without: tuple[str, ...] = ()
    ) -> None:
        """Send what is not as it was `before`, but for files whose first folder is in `without`.

        What has not changed here may have changed there: a report can be made anew while the
        study runs.
        """
        for path, state in self.contents().items():
            relative = path.relative_to(self.local)
            sent = before.get(path) == state or relative.parts[0] in without
            if not sent and not relative.name.startswith("."):
                self.push(path)

    def remove(self, path: Path) -> None:
        """Delete what mirrors a local file, if it is there."""
        store, name = self._object(path.relative_to(self.local))
        with self._told("delete from"), contextlib.suppress(FileNotFoundError):
            store.delete_file(name)

    def pull(self, below: str = "", *, only: tuple[str, ...] = ()) -> None:
        """Make the local files below a folder of the study's those of the store.

        With `only`, fetch files with these endings and leave others alone.
        """
        from pyarrow import fs

        with self._told("read"):
            store, root = self._store
            selector = fs.FileSelector(f"{root}/{below}".rstrip("/"), True, True)
            names = [info.path for info in store.get_file_info(selector) if info.is_file]
            if not only:
                shutil.rmtree(self.local / below, ignore_errors=True)
            for name in (name for name in names if name.endswith(only or ("",))):
                target = self.local / PurePosixPath(name).relative_to(root)
                # It may have gone since: a running study deletes old checkpoints.
                with contextlib.suppress(FileNotFoundError):
                    with store.open_input_stream(name) as stream:
                        data = stream.read()
                    with _here(target):
                        target.parent.mkdir(parents=True, exist_ok=True)
                        temporary = target.with_name(f".{target.name}.pull")
                        temporary.write_bytes(data)
                        temporary.replace(target)

    def _object(self, relative: Path | str) -> tuple[Any, str]:
        """Return the store, and what it calls a file of the local folder."""
        store, root = self._store
        return store, f"{root}/{relative}"

    def _told(self, verb: str) -> AbstractContextManager[None]:
        """Tell what ails the store."""
        remedy = "check the address and your rights there, or choose another --results-dir"
        return refused(
            lambda e: StorageError(f"cannot {verb} {self.shown} ({_reason(e)}): {remedy}")
        )


def is_remote(place: str) -> bool:
    """Return whether `place` names an object store; UserError if neither that nor a path."""
    scheme, mark, _ = place.partition("://")
    if mark and scheme not in SCHEMES:
        raise UserError(f"--results-dir {place}: give a folder or s3://BUCKET/FOLDER")
    return bool(mark)


def attach(mirror: Mirror) -> None:
    """Send from now on what this process writes below the mirror's local folder."""
    mirror.local.mkdir(parents=True, exist_ok=True)
    _attached[mirror.local] = mirror


def detach(mirror: Mirror) -> None:
    """Stop sending."""
    _attached.pop(mirror.local, None)


def of(path: Path) -> Mirror | None:
    """Return the attached mirror that `path` belongs to."""
    return next((m for folder, m in _attached.items() if folder in path.parents), None)


def _here(path: Path) -> AbstractContextManager[None]:
    """Tell what ails the local copy from what ails the store."""
    remedy = "free space there, or name another folder in LABTUNE_MIRROR"
    what = f"cannot use {path}, the local copy of results"
    return refused(lambda e: StorageError(f"{what} ({e.strerror}): {remedy}"))


def shown(folder: Path) -> str:
    """Return what users call a result folder: where it is mirrored, if it is."""
    remote = of(folder / "study.json")
    return str(folder) if remote is None else remote.shown


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
