"""What this machine has, found out without torch and without Ray."""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path


def cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_gpus() -> int:
    """NVIDIA GPUs that the driver of this machine shows, whether or not this process may use them."""
    proc = Path("/proc/driver/nvidia/gpus")
    if proc.is_dir():
        return len(list(proc.iterdir()))
    devices = [entry for entry in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", entry.name)]
    if devices:
        return len(devices)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def gpus() -> int:
    """GPUs that this process may use: the installed ones, as far as `CUDA_VISIBLE_DEVICES` shows them."""
    installed = installed_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    count = 0
    for entry in visible.split(","):
        entry = entry.strip()
        if entry.isdigit() and int(entry) >= installed or entry in ("", "-1"):
            break  # CUDA itself ignores everything from the first index that does not exist
        count += 1
    return min(count, installed)


def cxx_compiler() -> str | None:
    """The C++ compiler that torch and DeepSpeed would use: `CXX`, or one of the usual names on the path."""
    names = (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def has_address(address: str) -> bool:
    """Whether an IP address is one of this machine's own, so that a process here can listen at it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def lasting(path: str | Path) -> Path:
    """Where a relative run folder lies: here, but in the home folder for a job submitted with `--working-dir`.

    Ray runs such a job in a copy of the folder it was submitted from, and removes the copy later: what was trained
    would go with it.

    Args:
        path: A folder, relative or not; `~` is the home folder.

    Returns:
        The folder; relative only where the present one lasts.
    """
    path = Path(path).expanduser()
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        job = {}
    copied = "working_dir" in (job.get("runtime_env") or {})
    return Path.home() / path if copied else path
