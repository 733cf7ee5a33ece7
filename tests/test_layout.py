"""The rooms of the project stay apart: what may import what, and what a package shows."""

import ast
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import ranklet
from ranklet import errors
from ranklet.errors import RankletError

ROOT = Path(__file__).parents[1]
OURS = {"ranklet", "ranklet_training", "ranklet_export", "ranklet_cli"}
HEAVY = {"torch", "onnx", "polars", "click", *OURS} - {"ranklet"}
# What a room may import beside the standard library, lazily or not.
ALLOWED = {
    "runtime": {"ranklet", "numpy", "onnxruntime"},
    "training": {
        *("ranklet", "ranklet_training", "numpy", "torch", "polars"),
        *(
            "filelock",
            "matplotlib",
            "optuna",
            "pooch",
            "safetensors",
            "scipy",
            "sqlalchemy",
            "tqdm",
        ),
    },
    "export": {"ranklet", "ranklet_training", "ranklet_export", "numpy", "torch", "onnx"},
    "cli": {
        *(*OURS, "click", "numpy", "onnxruntime", "matplotlib", "polars", "torch", "tomli"),
        *("model_signing", "cryptography"),
    },
}
# Adapters to what a user has and calls by name; its extra installs it.
ADAPTERS = {
    "arrow.py": {"pyarrow"},
    "hub.py": {"huggingface_hub"},
    "mlflow.py": {"mlflow", "pandas"},
    "mlflow_model.py": {"mlflow", "pandas"},
    "polars.py": {"polars"},
    "ray.py": {"pyarrow", "ray"},
    "spark.py": {"pyarrow", "pyspark"},
    "triton_client.py": {"tritonclient"},
}
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for room in ALLOWED
    for path in sorted((ROOT / room).rglob("*.py"))
}
LONGEST_FILE, MOST_METHODS = 400, 15
FACES = {"Ranker": 20}  # what a user calls is in one place, each method in a few lines


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Return the top packages of the import statements among nodes."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def run_python(code: str) -> str:
    """Run code in a fresh interpreter that knows nothing of pytest."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_ranklet_loads_nothing_heavy_prints_nothing_and_keeps_the_environment() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import ranklet; assert before == os.environ\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    printed = run_python(code)
    assert printed.count("\n") == 1
    assert set(printed.split()) & HEAVY == set()


def test_ranking_loads_nothing_heavy(tiny_bundle: Path) -> None:
    code = (
        "import sys, ranklet\n"
        f"ranker = ranklet.Ranker.load({str(tiny_bundle)!r}, provider='cpu')\n"
        "some = [str(item) for item in ranker.vocabulary.all_ids][:9]\n"
        "ranker.rank(some, candidates=some), ranker.users([some, []]).rank()\n"
        "ranker.user(some).rank(eligible=ranker.eligible(some))\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert set(run_python(code).split()) & HEAVY == set()


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = ALLOWED[room] | sys.stdlib_module_names
    strange = {
        path: names
        for path, text in SOURCES.items()
        if path.is_relative_to(ROOT / room)
        and (
            names := imported(ast.walk(ast.parse(text))) - allowed - ADAPTERS.get(path.name, set())
        )
    }
    assert strange == {}


def test_the_command_line_loads_nothing_heavy_before_it_is_asked() -> None:
    code = "import sys, ranklet_cli.group; print(*{name.split('.')[0] for name in sys.modules})"
    assert set(run_python(code).split()) & HEAVY == {"click", "ranklet_cli"}


def test_a_long_file_says_why() -> None:
    long = [path for path, text in SOURCES.items() if text.count("\n") > LONGEST_FILE]
    reasons = {path: ast.get_docstring(ast.parse(SOURCES[path])) or "" for path in long}
    assert [path for path, text in reasons.items() if "in one file because" not in text] == []


def is_property(method: ast.FunctionDef) -> bool:
    names = {node.id for node in method.decorator_list if isinstance(node, ast.Name)}
    return bool(names & {"property", "cached_property"})


def test_a_class_has_few_methods() -> None:
    for path, text in SOURCES.items():
        for kind in ast.walk(ast.parse(text)):
            if isinstance(kind, ast.ClassDef):
                methods = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
                public = [m for m in methods if m.name[0] != "_" and not is_property(m)]
                most = FACES.get(kind.name, MOST_METHODS)
                assert len(public) <= most, f"{path}: {kind.name}"


def test_the_public_methods_of_a_ranker_are_those_of_the_manual() -> None:
    members = vars(ranklet.Ranker).items()
    functions = {n for n, v in members if not n.startswith("_") and not isinstance(v, property)}
    manual = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:ranker|Ranker)\.(\w+)\(", manual))
    assert functions == named
    assert functions == {
        *("load", "from_hub", "reload", "rank", "rank_batch", "similar", "popular", "user_vector"),
        *("item_vectors", "user", "users", "eligible", "define", "add_items", "remove_items"),
        *("retitle", "titles", "find"),
    }


def test_the_exported_names_are_all_that_is_public() -> None:
    modules = [name for name, value in vars(ranklet).items() if isinstance(value, types.ModuleType)]
    public = {name for name in vars(ranklet) if not name.startswith("_")} - set(modules)
    assert ranklet.__all__ == sorted({*public, "__version__"})
    assert all(hasattr(ranklet, name) for name in ranklet.__all__)


def test_errors_are_drawn_exported_and_have_exit_statuses_of_their_own() -> None:
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, RankletError)
    ]
    for kind in kinds:
        assert f" {kind.__name__} " in f" {errors.__doc__} ".replace("\n", " ")
        assert getattr(ranklet, kind.__name__) is kind
        # 0 is success, 2 a wrong command line, and from 126 on a shell speaks.
        assert kind.exit_code in {1, *range(3, 126)}
    codes = [kind.exit_code for kind in kinds if "exit_code" in vars(kind)]
    assert len(codes) == len(set(codes))
