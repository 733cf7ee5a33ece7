"""Entry point of ``ranklet``, which sets up streams and signals before anything is imported.

Its own imports are those that Python has made at its start.

* SIGINT, SIGTERM and SIGHUP raise SystemExit, so that all cleanups run; the status is 128 + number.
  A signal during an import waits for its end. Only while Python itself starts, before it has come
  to this module, does it answer Ctrl-C on its own.
* What can't be written to stderr is dropped. Writing to a closed stdout fails.
"""

import io
import os
import sys
import time
from types import FrameType

try:
    import signal  # defines enums, which takes as long as all before it
except KeyboardInterrupt:  # before the handlers
    sys.stderr.write("interrupted\n")
    sys.exit(130)

STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
STOPPED: list[int] = []  # the signals that arrived
UNWINDING = 1.0  # seconds after a signal in which others are ignored, so that cleanups end


class Notes(io.TextIOWrapper):
    """Stderr that drops what can't be written, so that the work goes on."""

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:  # noqa: SIM105 (an import)
            super().flush()
        except OSError:
            pass


def main() -> None:
    """Run the command line; a signal ends it with one line, without a traceback."""
    _stop_on_signals()
    status: str | int | None = None
    try:
        _open_streams()
        status = _run()
    except BaseException:  # also what a library makes of the signal
        if not STOPPED:
            raise
    if STOPPED:
        status = 128 + STOPPED[0]
    is_worker = "TORCHELASTIC_RUN_ID" in os.environ  # whose launcher says it
    if isinstance(status, int) and status > 128 and not is_worker:
        sys.stderr.write("interrupted\n")
    status = _flush_stdout() or status
    if hasattr(signal, "setitimer"):  # of a signal that still waits for an import
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in STOPS:  # the work is done, and Python takes a while to end
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _run() -> str | int | None:
    """Run the command line; return its exit status, or a message that names a missing package."""
    # torch's threads wait by spinning, which beside other work on all cores slows a training down
    # by a factor of 60. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from ranklet_cli.group import cli
    except ImportError as error:
        needs_click = error.name == "click"
        hint = "the command line needs click: pip install click" if needs_click else error
        return f"ranklet: {hint}"
    try:
        cli()
    except SystemExit as end:
        return end.code
    return 0


def _open_streams() -> None:
    """Occupy closed descriptors, whose numbers data files would get otherwise; wrap stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number; writing still fails
    binary = open(os.devnull, "wb") if sys.stderr is None else sys.stderr.buffer  # noqa: SIM115
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = Notes(binary, encoding, "backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # titles, paths


def _stop_on_signals() -> None:
    """Raise SystemExit at each signal that is not ignored, and note it in ``STOPPED``.

    A library that was calling back to Python may drop it, print that, and fail in its own way.
    """
    latest = -UNWINDING

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal latest
        STOPPED.append(number)
        sys.unraisablehook = lambda _: None
        if "logging" in sys.modules:  # of a library that logs what it makes of the exception
            sys.modules["logging"].disable()
        if hasattr(signal, "setitimer") and _is_importing(frame):  # try again soon
            signal.signal(signal.SIGALRM, lambda _, now: stop(number, now))
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        elif time.monotonic() - latest > UNWINDING:
            latest = time.monotonic()
            raise SystemExit(128 + number)

    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is imported; an exception there may abort the C++ of a library."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _flush_stdout() -> int:
    """Write the rest of stdout, and return 1 if that fails; Python's own flush would complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"Error: stdout: {error.strerror}\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return 0
