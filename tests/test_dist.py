"""What is published: one version, a sdist that builds the wheel, and packages that rank."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ranklet import Ranker, __version__

ROOT = Path(__file__).parents[1]
RANK = "from ranklet import Ranker; print(*Ranker.load({!r}).rank({!r}, k=5).items)"


def output(*command: Any, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(build_once: Callable[..., Path]) -> Path:
    """The sdist, and the wheel that is built from it."""
    pytest.importorskip("build", reason="build is not installed")

    def make(path: Path) -> None:
        output(sys.executable, "-m", "build", "--outdir", path, cwd=ROOT)

    return build_once("dist", make)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The programs of a virtual environment with nothing in it."""
    path = tmp_path / "empty"
    output(sys.executable, "-m", "venv", path)
    return path / "bin"


def test_both_packages_have_the_version_of_the_runtime() -> None:
    assert json.loads((ROOT / "web" / "package.json").read_text())["version"] == __version__


@pytest.mark.slow
def test_the_wheel_holds_the_four_rooms_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    rooms = {"ranklet", "ranklet_cli", "ranklet_export", "ranklet_training"}
    assert tops - rooms == {f"ranklet-{__version__}.dist-info"}
    with tarfile.open(next(iter(dist.glob("*.tar.gz")))) as archive:
        names = {name.split("/")[1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "runtime", "tests"} <= names
    assert not names & {"models", "build", ".venv"}


@pytest.mark.slow
def test_the_wheel_ranks_in_an_empty_environment(
    dist: Path, empty: Path, shipped_bundle: Path, tmp_path: Path
) -> None:
    (wheel,) = dist.glob("*.whl")
    output(empty / "pip", "install", "--quiet", f"{wheel}[cpu]")
    expected = Ranker.load(shipped_bundle).rank(["1", "2571"], k=5).items
    code = RANK.format(str(shipped_bundle), ["1", "2571"])
    assert output(empty / "python", "-c", code, cwd=tmp_path).split() == list(expected)
    listed = output(empty / "ranklet", "rank", shipped_bundle, "--history", "1,2571", "--json")
    assert json.loads(listed)["items"][:5] == list(expected)


@pytest.mark.slow
def test_the_steps_of_the_image_make_a_ranker(empty: Path, tmp_path: Path) -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    source = tmp_path / "src"
    for line in re.findall(r"^COPY (.+) /src", text, re.MULTILINE):
        for name in line.split():
            place = ROOT / name
            copy = shutil.copytree if place.is_dir() else shutil.copyfile
            source.mkdir(exist_ok=True)
            copy(place, source / name)
    (install,) = re.findall(r"^RUN pip (.+)$", text, re.MULTILINE)
    words = [word.strip("'").replace("/src", str(source)) for word in install.split()]
    output(empty / "pip", *words)
    assert "rank" in output(empty / "ranklet", "--help")
    assert "USER ranklet" in text


@pytest.mark.slow
def test_linux_on_arm_has_wheels_of_all_that_ranking_needs(tmp_path: Path) -> None:
    platform = ["--platform", "manylinux_2_28_aarch64", "--python-version", "3.12"]
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-deps"]
    packages = ["numpy", "onnxruntime", "click"]
    output(*command, *platform, "--dest", tmp_path, *packages)
    names = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert names == set(packages)
