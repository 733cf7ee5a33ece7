"""The advice for a missing package works where ranklet was installed from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ranklet import extras

CODE = "from ranklet.extras import pip_install; print(pip_install('train'))"


@pytest.mark.parametrize(
    ("origin", "advice"),
    [
        (None, "pip install 'ranklet[train]'"),
        ({"url": "file:///my%20code", "dir_info": {}}, "pip install '.[train]' in /my code"),
        ({"url": "file:///src", "dir_info": {"editable": True}}, "pip install '.[train]' in /src"),
        (
            {"url": "https://host/ranklet.whl", "archive_info": {}},
            "pip install 'ranklet[train]'",
        ),
    ],
    ids=["index", "folder", "editable", "wheel"],
)
def test_the_advice_follows_the_origin(
    origin: dict[str, object] | None, advice: str, tmp_path: Path
) -> None:
    package, facts = tmp_path / "ranklet", tmp_path / "ranklet-0.1.0.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(extras.__file__, package)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: ranklet\nVersion: 0.1.0\n")
    if origin is not None:
        (facts / "direct_url.json").write_text(json.dumps(origin))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == advice + "\n"


def test_sources_that_are_not_installed_are_a_checkout() -> None:
    assert extras.pip_install("cpu").startswith("pip install '.[cpu]' in ")
