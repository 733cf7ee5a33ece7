"""Start the processes of a training on this machine, and end all when one fails.

``torchrun`` does so too, on several machines, but prints a page of its own at every failure.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread

from torch._C._distributed_c10d import TCPStore

from ranklet.errors import RunError

HERE, LOOPBACK = "127.0.0.1", ("lo", "lo0")  # no other machine sees what they exchange
GRACE = 10.0  # seconds in which a process ends by itself after SIGTERM
POLL = 0.1  # seconds
LAUNCHED = "TORCHELASTIC_RUN_ID"  # environment variable that torchrun sets
LAUNCHER = "RANKLET_LAUNCHER"  # environment variable: the process that has started this one


def launch(processes: int, command: Sequence[str]) -> int:
    """Run a command in several processes of this machine, which share its cores.

    Return 0, or the exit status of the process that has failed, and has said why.

    RunError: a process was killed.
    """
    server = socket.create_server((HERE, 0))
    port, descriptor = server.getsockname()[1], server.detach()
    store = TCPStore(
        HERE, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )
    shared = _environment(processes, store.port)
    workers = list[subprocess.Popen[bytes]]()
    try:
        for number in map(str, range(processes)):
            own = {"RANK": number, "LOCAL_RANK": number}
            workers.append(subprocess.Popen(command, env={**shared, **own}))
        while None in (ends := [worker.poll() for worker in workers]) and not any(ends):
            time.sleep(POLL)
    finally:
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + GRACE
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))
            worker.kill()
            worker.wait()
    status = next((end for end in ends if end), 0)
    ended_by = -status if status < 0 else status - 128
    if ended_by not in {*signal.Signals}:
        return status
    name = signal.Signals(ended_by).name
    raise RunError(
        f"process {ends.index(status) + 1} of {processes} of this training was ended by {name}: "
        "resume (--resume), with more memory or fewer processes if the system ended it"
    )


def _environment(processes: int, port: int) -> dict[str, str]:
    """Return the variables of ``torchrun`` that are the same in all processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    loopback = [name for _, name in socket.if_nameindex() if name in LOOPBACK]
    return {
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // processes)),
        **({"GLOO_SOCKET_IFNAME": loopback[0]} if loopback else {}),
        "PYTHONSAFEPATH": "1",  # modules of the working folder are none of ours
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HERE,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is that of the launcher
        LAUNCHED: "ranklet",
        LAUNCHER: str(os.getpid()),
    }


def is_launched() -> bool:
    """Return whether ``launch`` or ``torchrun`` has started this process."""
    return LAUNCHED in os.environ


def end_with_launcher() -> None:
    """Let this process end, as by SIGTERM, when ``launch`` ends that has started it."""
    if launcher := os.environ.get(LAUNCHER):
        Thread(target=_end_with, args=(int(launcher),), daemon=True).start()


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)
