"""The command line as a whole: help, missing packages, exit status, from a log to a bundle."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnx
import pytest

from commands import ask, call
from ranklet import BundleError
from ranklet.bundle.folder import describe_files
from ranklet.bundle.manifest import Manifest
from ranklet_cli.group import cli
from ranklet_training.runs.checkpoint import Run

COMMANDS = [
    *("data", "train", "tune", "evaluate", "compare"),
    *("export", "onnx", "sign", "verify", "inspect", "rank", "similar", "popular", "bench"),
    *("export-to triton", "export-to mlflow", "push"),
    *("catalogue add", "catalogue remove", "catalogue retitle", "catalogue save"),
]
TINY = ["--set", "width=16", "--set", "max_length=20", "--set", "epochs=1"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert "--json" in result.stdout


def test_every_command_is_checked() -> None:
    names = []
    for name, command in cli.commands.items():
        parts = command.commands if isinstance(command, click.Group) else {}
        names += [f"{name} {part}" for part in parts] or [name]
    assert sorted(names) == sorted(COMMANDS)


def test_help_works_without_torch_and_loads_none_of_it() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ranklet_cli.group import cli\n"
        "for c in cli.commands: assert CliRunner().invoke(cli, [c, '--help']).exit_code == 0\n"
        "assert not {'torch', 'polars', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_the_extra_to_install(log: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['polars'] = None\n"
        f"sys.argv = ['ranklet', 'train', {str(log)!r}, '--out', {str(tmp_path / 'run')!r}]\n"
        "from ranklet_cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "polars is not installed: pip install '.[train]' in " in done.stderr


def test_train_evaluate_export_rank(log: Path, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    items = log.with_name("items.parquet")
    trained = ask("train", log, "--items", items, "--out", run, *TINY)
    assert trained["settings"]["model"]["width"] == 16
    judged = ask("evaluate", run, log)
    assert json.loads((run / "evaluation.json").read_text()) == judged
    assert ask("export", run, bundle)["precision"] == "int8"
    ranked = ask("evaluate", bundle, log)
    for a, b in zip(judged["rows"], ranked["rows"], strict=True):
        assert a["masked"] == pytest.approx(b["masked"], abs=5e-5)
        assert a["unmasked"] == pytest.approx(b["unmasked"], abs=5e-5)
    manifest = ask("inspect", bundle)
    assert manifest["quality"] == judged
    card = (bundle / "README.md").read_text()
    assert f"{judged['rows'][0]['masked']['NDCG@10']:.4f}" in card
    assert call("inspect", bundle).exit_code == 0


@pytest.mark.parametrize("facts", [{"training": {}}, {"data": {"events": "many"}}])
def test_facts_of_another_form_are_named(
    tiny_bundle: Path, tmp_path: Path, facts: dict[str, Any]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    replace(Manifest.read(bundle), **facts).write(bundle)
    shown = call("inspect", bundle)
    assert shown.exit_code == BundleError.exit_code
    assert "says of itself what ranklet does not write" in shown.stderr


@pytest.mark.parametrize("training", [{}, {"model": [], "train": {}}, {"model": {}, "train": 1.5}])
def test_settings_of_another_form_are_named(
    tiny_bundle: Path, tmp_path: Path, training: dict[str, Any]
) -> None:
    bundle, log = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")), tmp_path / "log.csv"
    replace(Manifest.read(bundle), training=training).write(bundle)
    rows = (f"{user},i0000{user + n},{n}\n" for user in range(1, 4) for n in range(5))
    log.write_text("user_id,item_id,timestamp\n" + "".join(rows))
    judged = call("evaluate", bundle, log)
    assert judged.exit_code == BundleError.exit_code
    assert "was trained with settings that ranklet does not write" in judged.stderr


@pytest.mark.parametrize(
    ("command", "name", "reason"),
    [
        ("rank", "nowhere/x", "No such file or directory"),
        ("rank", "file/x", "Not a directory"),
        ("export", "file/x", "Not a directory"),
    ],
)
def test_what_can_not_be_written_is_one_line_with_path_and_reason(
    command: str, name: str, reason: str, tiny_run: Run, tiny_bundle: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "h.jsonl", tmp_path / name
    (tmp_path / "file").touch()
    source.write_text('{"history": []}')
    arguments = {
        "rank": [tiny_bundle, "--input", source, "--output", target],
        "export": [tiny_run.path, target],
    }
    result = call(command, *arguments[command])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {target}: {reason}"


def seal(bundle: Path, original: Path) -> None:
    """Write the manifest of a changed copy, with the digests that it has now."""
    manifest = Manifest.read(original)
    Manifest(**{**vars(manifest), "files": describe_files(bundle)}).write(bundle)


def test_verify_refuses_changed_golden_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    assert ask("verify", bundle)["golden"] > 0
    golden = json.loads((bundle / "golden.json").read_text())
    golden[0]["items"][0], golden[0]["items"][-1] = golden[0]["items"][-1], golden[0]["items"][0]
    (bundle / "golden.json").write_text(json.dumps(golden))
    seal(bundle, tiny_bundle)
    result = call("verify", bundle)
    assert result.exit_code == 3
    assert "golden answer 0 differs" in result.stderr


def test_verify_asks_for_kept_users_too(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph = onnx.load(bundle / "append.onnx", load_external_data=False)
    floats = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    bias = [tensor for tensor in floats if not tensor.external_data][-1]  # of the last norm
    changed = onnx.numpy_helper.to_array(bias) + 0.1
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
    (bundle / "append.onnx").write_bytes(graph.SerializeToString())
    seal(bundle, tiny_bundle)
    result = call("verify", bundle)
    assert result.exit_code == 3
    assert "of a kept user differs on this machine" in result.stderr


def test_a_folder_that_is_no_bundle_ends_with_status_3(tmp_path: Path) -> None:
    result = call("rank", tmp_path, "--history", "1")
    assert result.exit_code == 3
    assert "is not a bundle" in result.stderr


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("click", "ranklet: the command line needs click: pip install click"),
        ("onnxruntime", "ranklet: ranklet needs onnxruntime, and none is installed"),
    ],
)
def test_a_base_package_that_is_missing_is_one_line(package: str, message: str) -> None:
    code = (
        "import sys, importlib.util as util\nfind = util.find_spec\n"
        f"util.find_spec = lambda name, *a: None if name == {package!r} else find(name, *a)\n"
        f"sys.modules[{package!r}] = None\nfrom ranklet_cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["onnx", "similar"])
def test_a_link_that_leads_to_itself_is_named(tmp_path: Path, command: str) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    bundle = Path(__file__).parents[2] / "models" / "ml-latest-small"
    paths = {"onnx": (bundle, loop), "similar": (loop, "1")}[command]
    result = call(command, *paths)
    assert result.exit_code in (1, 2)
    assert str(loop) in result.stderr
