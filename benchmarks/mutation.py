"""Mutation testing: small faults put into a module, one at a time, and whether a test notices.

    python benchmarks/mutation.py [--every 4] [request.py bundle/graph.py ...]

* The operators are mutmut's, a negated condition, a loop that is not entered, and a call or a raise
  left out. mutmut itself expects one folder ``src`` and leaves out decorated functions.
* Not mutated: annotations, decorators, imports, and texts of messages.
* pytest collects once. Each mutant is a fork in which functions, defaults and constants of the
  module are exchanged for those of the mutated source; its tests run until the first one fails.
* Faulty code writes files. As root it may replace a device: a fault in files/atomic.py made a
  regular file of /dev/full. Run it as another user, or in a container.
* Bundles that tests share are built once, by the first fork; they stay in ``build/mutation``.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import libcst as cst
import pytest
from _pytest.main import pytest_runtestloop as run_tests
from mutmut.mutation.mutators import mutation_operators, operator_string

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "mutation"
CONSTANTS = (str, int, float, tuple, list, dict)
TYPE_ALIAS = cst.Name("TypeAlias")
TESTS = {  # of each module, those first that are quick
    "request.py": ["reader", "requests"],
    "bundle/vocabulary.py": ["vocabulary"],
    "bundle/folder.py": ["format", "folder", "reload"],
    "bundle/graph.py": ["graph"],
    "bundle/manifest.py": ["format", "manifest", "folder"],
    "files/atomic.py": ["descriptors", "files"],
    "files/json_lines.py": ["json_lines"],
}


def mutants(code: str, every: int) -> list[str]:
    """Return sources that differ from a module in one place, of all changes every n-th."""
    module = cst.parse_module(code)
    changes = list(_changes(module))[::every]
    found = (module.deep_replace(old, new).code for old, new in changes)
    return [text for text in dict.fromkeys(found) if text != code and _compiles(text)]


def _changes(node: cst.CSTNode, in_message: bool = False) -> Iterator[tuple[cst.CSTNode, Any]]:
    """Yield nodes and what takes their place."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
        return
    if isinstance(node, cst.AnnAssign) and node.annotation.annotation.deep_equals(TYPE_ALIAS):
        return
    in_message = in_message or isinstance(node, cst.Raise)
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            new = list(operator(node))
            if operator is operator_string:
                new = new[: 0 if in_message else 1]  # the others differ in case
            yield from ((node, each) for each in new)
    match node:
        case cst.If(test=test) | cst.While(test=test):
            inner = test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            yield test, cst.UnaryOperation(cst.Not(), inner)
        case cst.For():
            yield node.iter, cst.Tuple([])
        case cst.Expr(value=cst.Call()) | cst.Raise():
            yield node, cst.Pass()
    for child in node.children:
        yield from _changes(child, in_message)


def _compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def exchange(module: ModuleType, code: str) -> None:
    """Give the functions, defaults and constants of a module the values of another source.

    Functions and classes stay the objects that other modules have imported.
    """
    fresh = ModuleType(module.__name__)
    sys.modules[module.__name__] = fresh  # dataclasses look themselves up
    exec(compile(code, str(module.__file__), "exec"), vars(fresh))
    sys.modules[module.__name__] = module
    for name, new in vars(fresh).items():
        old = vars(module).get(name)
        if getattr(new, "__module__", None) != module.__name__:
            if name.startswith("__") or new is old or repr(new) == repr(old):
                continue
            for other in list(sys.modules.values()):  # also where it was imported to
                if vars(other).get(name) is old:
                    setattr(other, name, new)
        elif isinstance(new, type):
            for key, value in vars(new).items():
                is_constant = isinstance(value, CONSTANTS) and not key.startswith("__")
                if not _exchange(vars(old).get(key), value) and is_constant:
                    setattr(old, key, value)
        else:
            _exchange(old, new)


def _exchange(old: object, new: object) -> bool:
    """Exchange the code of functions, below decorators; return False for all else."""
    for inner in ("__wrapped__", "__func__", "fget", "func"):
        if hasattr(old, inner):
            return _exchange(getattr(old, inner), getattr(new, inner, None))
    if not (isinstance(old, FunctionType) and isinstance(new, FunctionType)):
        return False
    if len(old.__closure__ or ()) != len(new.__closure__ or ()):
        return False
    old.__code__, old.__defaults__ = new.__code__, new.__defaults__
    old.__kwdefaults__ = new.__kwdefaults__
    return True


class Campaign:
    """A pytest plugin that runs the collected tests once for each mutant of a file."""

    def __init__(self, file: str, every: int) -> None:
        self.path, self.every = ROOT / "runtime" / "ranklet" / file, every
        self.name = "ranklet." + file.removesuffix(".py").replace("/", ".")

    def pytest_configure(self) -> None:
        """Let hypothesis neither shrink nor remember what fails."""
        from hypothesis import Phase, settings

        settings.register_profile(
            "mutation", phases=[Phase.explicit, Phase.generate], database=None
        )
        settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests without a fault, then with each; print the faults that none notices."""
        code, start = self.path.read_text(), time.monotonic()
        if self.is_killed(session, code, 3600):
            raise SystemExit(f"{self.path}: its tests fail without any fault")
        seconds = 10 + 3 * (time.monotonic() - start)  # a fault may make a loop endless
        tried, alive = mutants(code, self.every), 0
        for text in tried:
            if not self.is_killed(session, text, seconds):
                alive += 1
                lines = unified_diff(code.splitlines(), text.splitlines(), n=0, lineterm="")
                print(*[*lines][2:], sep="\n", flush=True)
        print(f"{self.path.name}: {len(tried) - alive} of {len(tried)} killed", flush=True)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Log the failure that ends a run."""
        if report.failed:
            print(report.nodeid, report.longreprtext, sep="\n", flush=True)

    def is_killed(self, session: pytest.Session, code: str, seconds: float) -> bool:
        """Run the tests in a fork that has ``code`` as the module; return whether any failed."""
        child = os.fork()
        if child == 0:
            os.setsid()
            log = os.open(BUILT / f"{self.path.stem}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                exchange(sys.modules[self.name], code)
                session.config.option.maxfail = 1
                run_tests(session)
                os._exit(0)
            except BaseException:  # Failed, as a rule
                traceback.print_exc()
                os._exit(1)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status != 0
            time.sleep(0.01)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True


def main() -> None:
    """Try the mutants of each file in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="below runtime/ranklet/; all")
    parser.add_argument("--every", type=int, default=1, help="try every n-th mutant only")
    arguments = parser.parse_args()
    if unknown := {*arguments.files} - {*TESTS}:
        parser.error(f"{min(unknown)} is none of {', '.join(TESTS)}")
    (BUILT / "tests").mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    os.environ["PYTEST_XDIST_WORKER"] = "gw0"  # bundles are shared beside the folder of a run
    for file in arguments.files or TESTS:
        child = os.fork()
        if child == 0:
            options = ["-q", "-s", "-p", "no:cacheprovider", "-m", "not slow"]
            options += [f"--basetemp={BUILT}/tests/{Path(file).stem}"]
            options += [f"tests/runtime/test_{name}.py" for name in TESTS[file]]
            os._exit(pytest.main(options, plugins=[Campaign(file, arguments.every)]))
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
