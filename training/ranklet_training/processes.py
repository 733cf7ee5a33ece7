"""Processes of one training: which one this is, its device, what it shares, and how all end.

``torchrun`` or ``launch`` start them, and ``join`` makes each one know the others. A program that
does not join trains alone. All processes read the same files; the first one alone writes, locks and
prints.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: it keeps that of its import for ever
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ranklet.errors import RunError
from ranklet_training.launch import end_with_launcher, is_launched

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # of a process that waits for the others
GRACE = 10.0  # seconds in which a launcher ends the other processes, after one has failed


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _are_joined() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _are_joined() else 0


def is_first() -> bool:
    """Return whether this process writes files and prints."""
    return rank() == 0


def _are_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def device() -> torch.device:
    """Return where this process computes: on a GPU of its own if there are GPUs, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def to_device(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor of this process; on the CPU they share memory."""
    return torch.from_numpy(array).to(device())


def mixed_precision() -> torch.autocast:
    """Return the context of the encoder: bfloat16 products on a GPU that has them."""
    kind = device().type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" and _has_bfloat16())


def _has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def share(rows: int) -> slice:
    """Return the rows of a batch that this process takes: the others are before and after."""
    return slice(rows * rank() // count(), rows * (rank() + 1) // count())


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; the tensor itself may be overwritten."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def after_first(first: Callable[[], T], others: Callable[[], T]) -> T:
    """Return what ``first`` gives in the first process, and ``others``, after it, in the others."""
    result = first() if is_first() else None
    wait_for_all()
    return others() if result is None else result


def wait_for_all() -> None:
    """Wait until every process is here."""
    total(torch.zeros(1, device=device()))


@contextmanager
def join() -> Iterator[None]:
    """Join the processes that ``torchrun`` or ``launch`` has started; without them, do nothing.

    All processes but the first are silent. If one fails, it raises its error and ends all others.
    A signal raises in silence, as the launcher gets it too.

    Raises:
        RunError: More processes than GPUs, or another process has ended.
    """
    if not is_launched():
        yield
        return
    end_with_launcher()
    streams = sys.stdout, sys.stderr
    if os.environ["RANK"] != "0":
        _silence()
    store, number, size = next(rendezvous("env://", timeout=PATIENCE))
    try:
        _connect(store, number, size)
        yield
    except BaseException as error:
        _silence()
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise
        is_lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if is_lost:  # a launcher knows which one has ended, and ends this one
            time.sleep(GRACE)
        if not _is_first_failure(store, number):
            time.sleep(GRACE)
            sys.exit(RunError.exit_code)
        sys.stdout, sys.stderr = streams
        if is_lost:
            raise RunError(
                "another process of this training has ended or does not answer: resume (--resume)"
            ) from error
        raise
    finally:
        if _are_joined():
            dist.destroy_process_group()


def _connect(store: Store, number: int, size: int) -> None:
    here, kind = int(os.environ["LOCAL_WORLD_SIZE"]), device().type
    if kind == "cuda":
        gpus = torch.cuda.device_count()
        if here > gpus:
            raise RunError(
                f"{here} processes need as many GPUs, and there are {gpus}: start one for each, or "
                "hide the GPUs (CUDA_VISIBLE_DEVICES=)"
            )
        torch.cuda.set_device(device())
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=PrefixStore("training", store),
        rank=number,
        world_size=size,
        timeout=PATIENCE,
    )


def _is_first_failure(store: Store, number: int) -> bool:
    """Return whether no other process has failed before."""
    try:
        return bool(store.compare_set("failed", "", str(number)) == str(number).encode())
    except RuntimeError:  # the launcher is gone
        return True


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    sys.stdout = sys.stderr = open(nothing, "w", closefd=False)  # noqa: SIM115 (to the end)
