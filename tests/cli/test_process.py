"""The command line as a process: signals, closed and full streams, locales, pipes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
if hasattr(signal, "SIGHUP"):
    SIGNALS.append((signal.SIGHUP, 129))
RANKLET = [sys.executable, "-m", "ranklet_cli"]
posix = pytest.mark.skipif(os.name != "posix", reason="shells and signals of POSIX")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = command.replace("ranklet ", f"{sys.executable} -m ranklet_cli ")
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )


def wait_for(is_there: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while not is_there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture
def folder(tiny_bundle: Path, log: Path, tmp_path: Path) -> Path:
    """A folder with a bundle, a log and histories."""
    (tmp_path / "b").symlink_to(tiny_bundle)
    (tmp_path / "log.parquet").symlink_to(log)
    (tmp_path / "h.jsonl").write_text('{"history": ["i01"]}\n' * 3)
    return tmp_path


@posix
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_ends_a_ranking_with_one_line_and_no_file(
    number: int, status: int, folder: Path
) -> None:
    (folder / "long.jsonl").write_text('{"history": ["i01"]}\n' * 300_000)
    before = set(folder.iterdir())
    command = [*RANKLET, "rank", "b", "--input", "long.jsonl", "--output", "o.jsonl"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE)
    wait_for(lambda: set(folder.iterdir()) - before, process)
    process.send_signal(number)
    assert process.communicate()[1] == b"interrupted\n"
    assert process.returncode == status
    assert set(folder.iterdir()) == before


@posix
@pytest.mark.slow
def test_a_terminated_export_leaves_no_folder(folder: Path) -> None:
    before = set(folder.iterdir())
    shape = "items=20000,width=64,blocks=2,heads=1,length=50"
    command = [*RANKLET, "export", "--random", shape, "big"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE)
    wait_for(lambda: set(folder.iterdir()) - before, process)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1].splitlines()[-1] == b"interrupted"
    assert process.returncode == 143
    assert set(folder.iterdir()) == before


@posix
def test_a_signal_during_the_imports_ends_with_one_line(folder: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from ranklet_cli import main\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, b"interrupted\n", b"")


@posix
@pytest.mark.parametrize("start", ["import ranklet_cli.main", "import ranklet_cli.__main__"])
def test_ctrl_c_before_the_handlers_are_set_ends_with_one_line(start: str) -> None:
    code = (
        "import sys\n"
        "sys.modules.pop('signal', None)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'signal': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"{start}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, b"interrupted\n", b"")


@posix
def test_a_signal_while_torch_is_imported_waits_for_the_end_of_the_import() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from ranklet_cli import main\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch.nn': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "def work():\n"
        "    try:\n"
        "        import torch\n"
        "        time.sleep(60)\n"
        "    finally:\n"  # the first signal alone is raised, so this ends
        "        print(sys.modules['torch'].__spec__._initializing)\n"
        "main._run = work\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (130, b"interrupted\n", b"False\n")


@posix
def test_a_signal_that_a_library_drops_before_it_fails_ends_with_one_line() -> None:
    code = (
        "import os, signal\n"
        "from ranklet_cli import main\n"
        "class Dropped:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "def work():\n"
        "    from ranklet_cli.group import _stop\n"
        "    Dropped()\n"
        "    _stop('a library failed', 4)\n"
        "main._run = work\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (143, b"interrupted\n", b"")


@posix
def test_a_second_signal_does_not_stop_the_cleanup(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from ranklet_cli import main\n"
        "def work():\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('cleaned')\n"
        "main._run = work\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (143, b"interrupted\n", b"cleaned\n")


@posix
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(folder: Path) -> None:
    code = (
        "import os, signal\n"
        "from ranklet_cli import main\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # as by nohup
        "main._run = lambda: os.kill(os.getpid(), signal.SIGHUP) or 0\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
def test_a_signal_after_the_work_leaves_its_status() -> None:
    code = (
        "import atexit, os, signal\n"
        "from ranklet_cli import main\n"
        "main._run = lambda: atexit.register(os.kill, os.getpid(), signal.SIGTERM) and 0\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@posix
def test_a_data_set_that_is_stopped_leaves_no_new_folder(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "def stop(event, values):\n"
        "    if event == 'open' and 'items.parquet' in str(values[0]):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.addaudithook(stop)\n"
        "from ranklet_cli import main\n"
        "sys.argv[1:] = ['data', 'synthetic', 'new']\n"
        "main.main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (143, b"interrupted\n")
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("train log.parquet --out r --set epochs=500 --set patience=500", "r/last.safetensors"),
        (
            "tune log.parquet --out st --set epochs=500 --search width=8,16",
            "st/trials/0/metrics.jsonl",
        ),
    ],
    ids=["train", "tune"],
)
def test_an_interrupted_training_says_how_to_go_on(command: str, made: str, folder: Path) -> None:
    process = subprocess.Popen([*RANKLET, *command.split()], cwd=folder, stderr=subprocess.PIPE)
    wait_for((folder / made).exists, process)
    process.send_signal(signal.SIGINT)
    *_, hint, last = process.communicate()[1].decode().splitlines()
    assert (process.returncode, last) == (130, "interrupted")
    assert hint.startswith(f"to go on: ranklet {command[:20]}")
    assert hint.endswith(" --resume")
    assert not [path for path in folder.rglob("*.tmp")]


@posix
@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_files_are_written_whatever_the_streams(streams: str, folder: Path) -> None:
    done = shell(f"ranklet rank b --input h.jsonl --output o.jsonl {streams}", folder)
    assert (done.returncode, done.stdout) == (0, "")
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert len(rows) == 3


@posix
@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2>&-", ">&-", "2>/dev/full", "2>&1 | :"])
def test_a_training_needs_no_stream(streams: str, folder: Path) -> None:
    tiny = "--set epochs=1 --set width=16 --set max_length=16"
    done = shell(f"ranklet train log.parquet --out r {tiny} {streams}", folder)
    assert done.returncode == 0
    assert "Error" not in done.stderr
    assert (folder / "r" / "best.safetensors").exists()


@posix
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("rank b --input h.jsonl >&-", "Error: stdout is closed, and there is no --output"),
        ("rank b --history i01 >&-", "Error: stdout is closed, and there is no --output"),
        ("inspect b --json >&-", "Error: stdout is closed, and --json writes to it"),
        ("rank b --input h.jsonl >/dev/full", "No space left on device"),
        ("rank b --history i01 >/dev/full", "No space left on device"),
        ("--help >/dev/full", "No space left on device"),
        ("--version >/dev/full", "No space left on device"),
        ("rank b --input - --output o.csv <&-", "Error: stdin is closed"),
    ],
)
def test_an_answer_that_nobody_gets_is_an_error_of_one_line(
    command: str, reason: str, folder: Path
) -> None:
    done = shell(f"ranklet {command}", folder)
    assert done.returncode in (1, 4)
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


@posix
def test_a_closed_pipe_ends_in_silence(folder: Path) -> None:
    (folder / "long.jsonl").write_text('{"history": ["i01"]}\n' * 20_000)
    done = shell("ranklet rank b --input long.jsonl | head -n 1", folder)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_locale_gets_an_answer(encoding: str, folder: Path) -> None:
    (folder / "unwanted \U0001f600").write_text("no\n")
    for flags in ([], ["--json"]):
        done = subprocess.run(
            [
                *RANKLET,
                "rank",
                "b",
                "--history",
                "i01",
                "--exclude",
                "unwanted \U0001f600",
                *flags,
            ],
            cwd=folder,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
        assert done.stdout


def test_a_program_talks_through_pipes(folder: Path) -> None:
    process = subprocess.Popen(
        [*RANKLET, "rank", "b", "--input", "-", "-k", "2"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for user in ("a", 7, None):
        process.stdin.write(json.dumps({"user_id": user, "history": ["i01"]}) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert answer["user_id"] == user
        assert len(answer["items"]) == 2
    process.stdin.write('{"histroy": []}\n')
    _, errors = process.communicate()
    assert process.returncode == 4
    assert errors.startswith("Error: stdin, line 4: expected ")


@posix
def test_what_a_library_logs_about_a_signal_is_dropped() -> None:
    code = """
import logging, os, signal
from ranklet_cli.main import _stop_on_signals
_stop_on_signals()
logging.error("before")
try:
    os.kill(os.getpid(), signal.SIGTERM)
except SystemExit:
    logging.error("after")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "ERROR:root:before\n"


def test_ctrl_c_before_the_handlers_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "ranklet_cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "ranklet_cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        runpy.run_module("ranklet_cli", run_name="__main__")
    assert isinstance(stopped.value, SystemExit)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
