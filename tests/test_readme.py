"""README.md promises; every block of it is run here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

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
    assert {name for name, _ in BLOCKS} == {"bash", "python", "text", "csv"}
    assert [len(of(name)) for name in ("bash", "python", "text", "csv")] == [2, 1, 1, 1]


def test_no_block_is_overlooked_and_the_page_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(BLOCKS)
    assert text.count("\n") <= 150


@pytest.mark.slow
def test_make_demo_prints_what_the_readme_shows() -> None:
    assert of("bash")[0].split("\n")[0] == "make demo"
    printed = run("make demo", ROOT)
    assert without_digits(of("text")[0]) in without_digits(printed)


def test_make_test_runs_this_test() -> None:
    assert of("bash")[0].split("\n")[1] == "make test"
    assert "-m pytest" in run("make --dry-run test", ROOT)


def test_the_python_block_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    subprocess.run([sys.executable, "-W", "error", "-c", of("python")[0]], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_five_commands_lead_from_a_csv_to_a_ranking(tmp_path: Path) -> None:
    header, *sample = of("csv")[0].splitlines()
    random = Random(0)
    items = ["lamp", "desk", "chair", "rug", "sofa", "shelf", "clock", "vase", "mirror", "stool"]
    rows = [
        f"user{user},{items[(user + step) % 10]},2026-03-{step + 2:02} 1{random.randrange(9)}:00:00"
        for user in range(60)
        for step in range(4 + user % 4)
    ]
    (tmp_path / "events.csv").write_text("\n".join([header, *sample, *rows]))
    commands = of("bash")[1]
    assert commands.count("ranklet ") == 5
    printed = run(commands, tmp_path)
    assert "as served" in printed
    assert "is intact and gives the golden answers" in printed
    assert "after lamp, desk" in printed


def test_the_map_of_the_repository_shows_what_is_there() -> None:
    room = ROOT
    ((_, tree),) = blocks_of(ROOT / "CONTRIBUTING.md")[-1:]
    for line in tree.splitlines():
        first, *others = re.split(" {2,}", line.strip())[0].split()
        if line[0] == " ":
            assert all((room / name).exists() for name in (first, *others)), line
        else:
            room = ROOT / first
            assert room.is_dir(), line


def test_linked_pages_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link
