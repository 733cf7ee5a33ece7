"""README.md promises; every block of it is run here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Return language and text of every block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS = blocks_of(README)


def of(language: str) -> list[str]:
    return [code for name, code in BLOCKS if name == language]


def run(code: str, folder: Path) -> str:
    """Run shell lines with the tested ranklet on the path, as a newcomer would type them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={**os.environ, "PATH": path, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_digits(text: str) -> str:
    """Figures differ between machines; words, titles and their order do not."""
    return re.sub(r"\s+", " ", re.sub(r"\d+\.\d+", "#", text)).strip()


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {name for name, _ in BLOCKS} == {"bash", "python", "text"}
    assert len(of("bash")) == 3
    assert len(of("text")) == 2


def test_no_block_is_overlooked() -> None:
    assert README.read_text(encoding="utf-8").count("```") == 2 * len(BLOCKS)


@pytest.mark.slow
def test_make_demo_prints_what_the_readme_shows() -> None:
    assert of("bash")[0].split("\n")[0] == "make demo"
    printed = run("make demo", ROOT)
    shown = of("text")[0]
    assert without_digits(shown) in without_digits(printed)


def test_make_test_runs_this_test() -> None:
    assert of("bash")[0].split("\n")[1] == "make test"
    assert "-m pytest" in run("make --dry-run test", ROOT)


@pytest.mark.parametrize("code", of("python"))
def test_python_block_runs(code: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_shell_blocks_lead_from_an_event_log_to_ranked_items(tmp_path: Path) -> None:
    printed = run("\n".join(of("bash")[1:]), tmp_path)
    assert "leave-one-out, test, full ranking" in printed
    assert "is intact and gives the golden answers" in printed
    assert len((tmp_path / "ranked.jsonl").read_text().splitlines()) == 1


def test_the_tree_shows_what_is_there() -> None:
    room = ROOT
    for line in of("text")[1].splitlines():
        first, *others = re.split(" {2,}", line.strip())[0].split()
        if line[0] == " ":
            assert all((room / name).exists() for name in (first, *others)), line
        else:
            room = ROOT / first
            assert room.is_dir(), line


def test_linked_pages_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link
