"""The same digits on CPUs of different makes: one instruction set for all.

Torch, oneDNN and MKL each take the newest instructions that a CPU has, and add up in the order that
suits these; after some epochs of training the last digits have become the second. Each reads once,
when it first computes, which instructions it may use. Importing `core` sets that, so every program
of labtune does so before it computes anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from core.errors import UserError

# STRICT: MKL then adds up alike on the CPUs of every maker, also at the edges of a matrix.
PIN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2,STRICT"}
CHOICE = "LABTUNE_CPU"  # avx2 (the default) or native
CHOICES = ("avx2", "native")

state = ""  # what `pin` found when `core` was imported


def pin() -> str:
    """Have torch, oneDNN and MKL use AVX2; return in words what came of it.

    What a user has set for one of them stays. With `LABTUNE_CPU=native` nothing is set, and what
    a parent process of labtune's has set is taken back; so it is where there is no AVX2.
    """
    native = os.environ.get(CHOICE) == "native"
    if native or "avx2" not in cpu_flags():
        for name, value in PIN.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        return f"native ({CHOICE})" if native else "native (no AVX2 here)"
    for name, value in PIN.items():
        os.environ.setdefault(name, value)
    torch = sys.modules.get("torch")  # in a notebook: it is too late when it has computed already
    if torch is not None and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT"):
        return "native (torch had computed before labtune was imported: import core first)"
    own = [f"{name}={os.environ[name]}" for name in PIN if os.environ[name] != PIN[name]]
    return f"AVX2 but for {', '.join(own)}" if own else "AVX2"


def check() -> None:
    """Raise UserError for another word than those of `CHOICES`."""
    chosen = os.environ.get(CHOICE) or CHOICES[0]
    if chosen not in CHOICES:
        raise UserError(f"{CHOICE}={chosen}: give {' or '.join(CHOICES)}, or leave it out")


def passed_on() -> dict[str, str]:
    """Return the variables that workers on other machines must find, for the same digits there."""
    own = {name: os.environ[name] for name in PIN if name in os.environ}
    return own | {CHOICE: os.environ.get(CHOICE) or CHOICES[0]}


def cpu_flags() -> set[str]:
    """Return what this CPU can do, as Linux names it; nothing on another system or architecture.

    Asked of Linux, since torch is not there yet; torch is made for no other x86-64 systems that
    labtune runs on.
    """
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        return set(next((line for line in lines if line.startswith("flags")), "").split())
    return set()
