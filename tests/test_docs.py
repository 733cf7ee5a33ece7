"""The manual is true: its code runs, its commands exist, its site loads nothing from elsewhere."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

import ranklet
from ranklet_cli.group import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PAGES = sorted(DOCS.glob("**/*.md"))
TUTORIAL = DOCS / "tutorial.md"
SNIPPET = re.compile(r"--8<--\n(.*)\n--8<--\n")  # a file that is shown on a page


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Return language and text of every block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def is_python(language: str, code: str) -> bool:
    return language == "python" and not SNIPPET.fullmatch(code)


def run(words: list[str], folder: Path) -> str:
    """Run a command with the tested ranklet on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(code: str, folder: Path) -> str:
    return run([sys.executable, "-W", "error", "-c", code], folder)


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def uses_shop(page: Path) -> bool:
    return "examples/shop.py" in page.read_text(encoding="utf-8")


WITH_PYTHON = [
    pytest.param(page, marks=pytest.mark.slow if uses_shop(page) else ())
    for page in PAGES
    if page != TUTORIAL and any(is_python(*block) for block in blocks_of(page))
]
COMMANDS = [
    (name_of(page), line)
    for page in PAGES
    for language, code in blocks_of(page)
    if language == "bash"
    for line in code.splitlines()
    if line.startswith("ranklet ")
]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_a_page_is_of_a_kind_that_is_checked(page: Path) -> None:
    blocks = blocks_of(page)
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks)
    assert {language for language, _ in blocks} <= {"python", "bash", "text", "js"}
    for _, code in blocks:
        if shown := SNIPPET.fullmatch(code):
            assert (ROOT / shown[1]).is_file()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    if uses_shop(page):
        shutil.copytree(request.getfixturevalue("shop_bundle"), tmp_path / "shop")
    code = "\n".join(code for language, code in blocks_of(page) if is_python(language, code))
    run_python(code, tmp_path)


@pytest.mark.slow
def test_the_tutorial_leads_from_a_log_to_rankings(tmp_path: Path) -> None:
    done, printed = "", ""
    for language, code in blocks_of(TUTORIAL):
        if is_python(language, code):
            done += code  # later blocks use names of earlier ones
            run_python(done, tmp_path)
        elif language == "bash" and "pip install" not in code:
            printed = run(["bash", "-euo", "pipefail", "-c", code], tmp_path)
    first, second = printed.split("after ")[1:]
    assert [line.split()[2][:5] for line in first.splitlines()[1:4]] == ["blue-"] * 3
    assert [line.split()[2][-5:] for line in second.splitlines()[1:4]] == ["-lamp"] * 3


@pytest.mark.slow
def test_the_commands_about_the_shop_run(shop_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(shop_bundle, tmp_path / "shop")
    blocks = [code for language, code in blocks_of(DOCS / "cli.md") if language == "bash"]
    code = "".join(code for code in blocks if " shop " in code)
    printed = run(["bash", "-euo", "pipefail", "-c", code], tmp_path)
    assert "by Gold desk" in printed


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_a_page_has_these_options(page: str, line: str) -> None:
    _, name, *words = shlex.split(line)
    command = cli.commands[name]
    if isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    _, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert rest == [], page


def test_the_page_of_python_shows_every_public_name_and_the_status_of_every_error() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    for name in set(ranklet.__all__) - {"__version__"}:
        value = getattr(ranklet, name)
        if not issubclass(value, Exception):
            assert f"\n::: ranklet.{name}\n" in page
        elif value is not ranklet.RankletError:
            row = re.search(rf"^\| `{name}`.*\| (\d+) \|$", page, re.MULTILINE)
            assert row is not None, name
            assert int(row[1]) == value.exit_code


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_command_line_shows_the_help_of_every_command(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown((DOCS / "cli.md").read_text(encoding="utf-8"))
    commands: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        parts = command.commands if isinstance(command, click.Group) else {}
        commands |= {f"{name} {part}": of_part for part, of_part in parts.items()}
        commands |= {} if parts else {name: command}
    for name, command in commands.items():
        assert f"## {name}\n```text\nUsage: ranklet {name} " in page
        for option in command.params:
            if isinstance(option, click.Option):
                assert f" {option.opts[-1]}" in page


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("the site needs the extra docs: pip install 'ranklet[docs]'")
    build = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    assert run([sys.executable, "-m", *build], ROOT) == ""
    pages = list(tmp_path.glob("**/*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert [
            tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)
        ] == []
