"""Description of the machine for timings: processor, GPU, system and versions."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime

from ranklet.engine.sessions import ORT_NAMES

Machine = dict[str, str | int]


def machine() -> Machine:
    """Return the facts that a timing depends on; ``gpu`` only where CUDA may run."""
    has_affinity = hasattr(os, "sched_getaffinity")
    facts: Machine = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    if ORT_NAMES["cuda"] in onnxruntime.get_available_providers() and (gpu := _gpu_model()):
        facts["gpu"] = gpu
    return facts


def describe_machine() -> str:
    """Return the facts of ``machine`` in one line."""
    return machine_line(machine())


def machine_line(facts: Machine) -> str:
    """Return facts of a machine in one line."""
    gpu = f", {facts['gpu']}" if "gpu" in facts else ""
    return (
        f"{facts['cpu']}, {facts['cores']} logical cores{gpu}, {facts['os']}, "
        f"Python {facts['python']}, numpy {facts['numpy']}, onnxruntime {facts['onnxruntime']}"
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu_model() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]
