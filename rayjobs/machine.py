"""What this machine has, found out without torch and without Ray."""

import os
import re
import shutil
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
