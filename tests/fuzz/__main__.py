"""Fuzz one target for some seconds, or all of them in turn: ``python -m fuzz [TARGET] SECONDS``."""

import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import atheris

with atheris.instrument_imports(include=["ranklet", "ranklet_training"]):
    from fuzz.targets import TARGETS

SLOWEST, MOST_MEMORY = 20, 4096  # seconds and MiB of one input


def main() -> int:
    """Fuzz; the exit status is not 0 where an input led to another error than ranklet's."""
    *names, seconds = sys.argv[1:]
    if len(names) == 1:
        _fuzz(names[0], int(seconds))
    status = 0
    for name in names or TARGETS:
        share = max(1, int(seconds) // len(names or TARGETS))
        print(f"{name}: {share} s", flush=True)
        status |= subprocess.run([sys.executable, "-m", "fuzz", name, str(share)]).returncode
    return status


def _fuzz(name: str, seconds: int) -> None:
    """Fuzz a target and end the process."""
    target, folder = TARGETS[name], Path(mkdtemp(prefix=f"fuzz-{name}-"))
    (folder / "corpus").mkdir()
    seeds = target.seeds()
    for number, seed in enumerate(seeds):
        (folder / "corpus" / str(number)).write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "timeout": SLOWEST,
        "rss_limit_mb": MOST_MEMORY,
        "max_len": 2 * max(map(len, seeds)),
        "artifact_prefix": f"{folder}/",
        "print_final_stats": 1,
    }
    arguments = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(folder / "corpus")], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
