"""The command that installs an extra, for messages about missing packages."""

import json
from pathlib import Path

SOURCES = Path(__file__).parents[2]


def pip_install(extra: str) -> str:
    """Return the command that installs an extra of ranklet, from the checkout if there is one."""
    from importlib.metadata import PackageNotFoundError, distribution  # 3 MB that few need
    from urllib.parse import unquote, urlsplit

    folder = str(SOURCES) if (SOURCES / "pyproject.toml").is_file() else None
    try:
        origin = json.loads(distribution("ranklet").read_text("direct_url.json") or "{}")
        if "dir_info" in origin:  # pip install from a folder, editable or not
            folder = unquote(urlsplit(origin["url"]).path)
    except (PackageNotFoundError, ValueError, KeyError):
        pass
    return f"pip install '.[{extra}]' in {folder}" if folder else f"pip install 'ranklet[{extra}]'"
