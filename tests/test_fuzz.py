"""Each fuzz target for ten seconds; ``make fuzz`` takes longer."""

import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 10
TARGETS = ("manifest", "graph", "saved_user", "csv", "jsonl", "parquet")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_bytes_lead_to_an_error_of_others(target: str) -> None:
    pytest.importorskip("atheris", reason="atheris is for Python 3.11 and later on Linux")
    command = [sys.executable, "-m", "fuzz", target, str(SECONDS)]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr[-3000:]
