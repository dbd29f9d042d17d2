"""A server of this machine that speaks S3."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.calls import until

S3_KEYS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
S3_KEYS |= {"AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Run a server that speaks S3 on a free port of loopback; yield its HOST:PORT."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            told = r"Running on http://(127\.0\.0\.1:\d+)"
            until(lambda: re.search(told, log.read_text()) or process.poll() is not None)
            found = re.search(told, log.read_text())
            assert found, log.read_text()
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def s3_client(address: str):
    """Return a client that may do anything."""
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1", **keys)
