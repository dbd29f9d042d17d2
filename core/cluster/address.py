"""Whether a Ray cluster answers at an address."""

from __future__ import annotations

import os
import socket

from core.errors import UserError

ANSWER = 20.0  # seconds for a cluster to greet


def check_address(address: str) -> None:
    """Refuse an address at which no Ray answers (Ray itself would wait for minutes).

    Raises UserError: malformed, no connection within 5 seconds or no answer within `ANSWER`.
    """
    shown = f"--address {address}"
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS")
        shown += f" with RAY_ADDRESS={named}" if named else ""
        address = named or _cluster_here()
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"{shown}: give auto or HOST:PORT, the address that `ray start` prints")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as link:
            _greet(link)
    except (OSError, OverflowError) as e:
        other = "unset RAY_ADDRESS" if "RAY_ADDRESS" in shown else "leave --address out"
        raise UserError(
            f"{shown}: no Ray cluster answers there; start one with `ray up cluster.yaml`, or"
            f" {other}"
        ) from e


def _greet(link: socket.socket) -> None:
    """Raise OSError unless HTTP/2, which Ray speaks, is spoken at the other end (RFC 9113, 3.4)."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    link.settimeout(ANSWER)
    link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    if link.recv(9)[3:4] != b"\4":  # a frame of settings, as ours
        raise ConnectionError("not Ray")


def _cluster_here() -> str:
    """Return the address of the cluster that Ray finds on this machine, or raise UserError."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address("auto") or ""
    except ConnectionError as e:
        raise UserError(
            "--address auto: no Ray cluster runs on this machine; start one with `ray up"
            " cluster.yaml`, give HOST:PORT, or leave --address out"
        ) from e
