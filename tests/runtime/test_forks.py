"""A forked child neither hangs nor crashes on what it inherits, and loads a bundle of its own."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from ranklet import Ranker
from ranklet.forks import UNFORKED, ProcessLock, cached_property

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that fork")

# Forks once for each of some lines, which the child runs before it ends as Python ends.
FORKS = """
import os, pickle, sys, threading, time
from ranklet import ProviderError, Ranker

path, threads, *lines = sys.argv[1:]
ranker = Ranker.load(path, provider="cpu", threads=int(threads))
user, answer = ranker.user(["i00001"]), ranker.rank(["i00001"]).items
user.rank()
sent = pickle.dumps(ranker)
pickle.loads(sent).rank(["i00001"])

def refuses(ask):
    try:
        ask()
    except ProviderError as error:
        assert str(error).startswith(path), error
        assert str(error).endswith("load it in the child"), error
    else:
        raise AssertionError("answered")

def be_busy():
    while True:
        own = Ranker.load(path, provider="cpu")
        own.rank(["i00001"], candidates=["i00002"])
        own.user(["i00001"]).rank()
        ranker.user(["i00001"]).rank()

def fork(line):
    child = os.fork()
    if child == 0:
        exec(line, globals())
        sys.exit()
    for _ in range(3000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    return "no end"

for line in lines:
    if line == "be busy":
        for _ in range(3):
            threading.Thread(target=be_busy, daemon=True).start()
        time.sleep(0.1)
    elif status := fork(line):
        print(line, status)
assert ranker.rank(["i00001"]).items == answer  # the parent goes on
sys.stdout.flush()
os._exit(0)
"""
REFUSES = "refuses(lambda: ranker.rank(['i00001'])); refuses(user.rank)"
LOADS = "assert Ranker.load(path, threads=int(threads)).rank(['i00001']).items == answer"
SENDS = "assert pickle.loads(sent).rank(['i00001']).items == answer"
RELOADS = "ranker.reload(); assert ranker.rank(['i00001']).items == answer; user.rank()"


def fork(path: Path, threads: int, *lines: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(path), str(threads), *lines]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_child_ends_as_others_do_and_refuses_to_rank_until_it_loads(
    threads: int, tiny_bundle: Path
) -> None:
    fork(tiny_bundle, threads, "pass", "del ranker, user", REFUSES, LOADS, SENDS, RELOADS)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_of_threads_that_load_and_rank_waits_for_none(
    threads: int, tiny_bundle: Path
) -> None:
    fork(tiny_bundle, threads, "be busy", *[f"{REFUSES}; {LOADS}; {SENDS}; {RELOADS}", "pass"] * 3)


def load_and_rank(path: Path) -> list[str] | list[int]:
    return Ranker.load(path, provider="cpu").rank(["i00001"]).items


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_of_every_start_method_load_their_own(method: str, tiny_bundle: Path) -> None:
    expected = Ranker.load(tiny_bundle, provider="cpu", threads=2).rank(["i00001"]).items
    with ProcessPoolExecutor(2, get_context(method)) as processes:
        assert [*processes.map(load_and_rank, [tiny_bundle] * 4)] == [expected] * 4
        ranker = Ranker.load(tiny_bundle, provider="cpu")
        answers = processes.map(Ranker.rank, [ranker] * 4, [["i00001"]] * 4)
        assert [answer.items for answer in answers] == [expected] * 4


def test_a_lock_of_another_thread_is_free_in_a_child() -> None:
    lock, is_held, may_end = ProcessLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock.lock:
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    child = os.fork()
    if child == 0:
        with lock.lock:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    may_end.set()
    thread.join()


def test_a_lock_of_the_thread_that_forks_stays_its_own() -> None:
    lock = ProcessLock()
    with lock.lock:
        child = os.fork()
    if child == 0:  # giving back a lock that it did not have would raise
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_property_that_another_thread_computes_is_computed_anew_in_a_child() -> None:
    is_begun, may_end = threading.Event(), threading.Event()

    class Slow:
        waits = True

        @cached_property
        def value(self) -> int:
            if self.waits:
                is_begun.set()
                may_end.wait()
            return 7

    slow = Slow()
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    is_begun.wait()
    child = os.fork()
    if child == 0:
        slow.waits = False
        os._exit(slow.value)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    may_end.set()
    thread.join()


def test_a_fork_waits_for_a_session_that_another_thread_makes() -> None:
    is_begun, made = threading.Event(), list[str]()

    def make() -> None:
        with UNFORKED:
            is_begun.set()
            threading.Event().wait(0.1)
            made.append("session")

    thread = threading.Thread(target=make)
    thread.start()
    is_begun.wait()
    child = os.fork()
    if child == 0:
        os._exit(7 if made else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    thread.join()
