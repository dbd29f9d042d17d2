"""What tests share: data beside the checkout, and studies run as a user runs them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import core  # noqa: F401 - pins the instruction set, whatever a test imports first

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real photos and weights, or skip with the reason."""
    folder = Path(os.environ.get("LABTUNE_TEST_DATA", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder.parent}: set LABTUNE_TEST_DATA to its folder")
    return folder


@pytest.fixture
def run_script():
    """Run a script of the checkout in a process of its own; return what it did."""

    def run(script: str, *arguments: object, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 280, "cwd": ROOT} | options
        return subprocess.run(command, **options)

    return run


@contextlib.contextmanager
def s3_server(log: Path, **environment: str) -> Iterator[str]:
    """Run a server that speaks S3 on a free port of loopback; yield its HOST:PORT."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def s3_client(address: str):
    """Return a client that may do anything."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://{address}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
