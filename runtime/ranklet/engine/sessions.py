"""Onnxruntime sessions on the requested execution provider, or an error.

onnxruntime falls back to the CPU silently when CUDA is compiled in and does not work
(onnxruntime#17801, #23647), so the session itself must say what it runs on.
"""

import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ranklet.errors import BundleError, ProviderError
from ranklet.extras import pip_install
from ranklet.forks import UNFORKED

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

Provider = Literal["auto", "cpu", "cuda"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
MAX_THREADS = 1024
ORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TF32, which is on by default, keeps 10 bits of each factor: scores would be off by a thousandth.
CUDA_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}

# Exceptions of loads and runs; none of these leaves ranklet.
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


def create_session(
    graph: Path, provider: Provider, threads: int
) -> "tuple[InferenceSession, Literal['cpu', 'cuda']]":
    """Return a session of a graph, and the provider that runs it.

    Args:
        graph: An ONNX file.
        provider: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA if it works, else the CPU.
        threads: For the work inside one run, from 1 to ``MAX_THREADS``.

    Raises:
        ProviderError: CUDA was asked for and is not what would run.
        BundleError: onnxruntime can't load the graph.
    """
    available = onnxruntime.get_available_providers()
    has_cuda = ORT_NAMES["cuda"] in available
    if provider == "cpu" or (provider == "auto" and not has_cuda):
        return _load(graph, threads), "cpu"
    if not has_cuda:
        raise ProviderError(_cuda_is_missing(available))
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints missing libraries
            onnxruntime.preload_dlls()  # finds the libraries of the nvidia wheels
    try:
        session = _load(graph, threads, CUDA_OPTIONS)
    except BundleError as error:  # a bad graph fails on the CPU, too
        logger.warning("%s", error)
        session = _load(graph, threads)
    active = session.get_providers()
    if active[0] == ORT_NAMES["cuda"]:
        return session, "cuda"
    if provider == "cuda":
        raise ProviderError(_cuda_is_missing(available, active))
    logger.warning("CUDA is compiled in and does not work; running on the CPU")
    return session, "cpu"


def _load(graph: Path, threads: int, cuda: dict[str, str] | None = None) -> "InferenceSession":
    """Load a graph on the CPU, or on CUDA with these options of it."""
    providers: list[str | tuple[str, dict[str, str]]] = [ORT_NAMES["cpu"]]
    if cuda is not None:
        providers.insert(0, (ORT_NAMES["cuda"], cuda))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors reach the caller as exceptions
    # Threads wait actively for work while a run lasts, and sleep between runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI, x86 adds products of 8-bit numbers in 16 bits, where they overflow; this widens
    # them there, and nowhere else (onnxruntime#12088).
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        str(graph).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"{graph} can't be opened: onnxruntime takes UTF-8 alone; rename the folder"
        ) from error
    try:
        with UNFORKED:
            # Without enable_fallback=0 a failed load prints to stdout, which breaks --json.
            return onnxruntime.InferenceSession(
                str(graph),
                options,
                providers=providers,
                enable_fallback=0,
                # For one row it makes one node of two and puts a Reshape before and after it.
                disabled_optimizers=["MatMulAddFusion"],
            )
    except ORT_ERRORS as error:
        raise BundleError(f"onnxruntime can't load {graph}: {error}") from error


def _cuda_is_missing(available: list[str], active: list[str] | None = None) -> str:
    running = f"active: {active[0]}" if active else f"compiled in: {', '.join(available)}"
    message = f"provider 'cuda' is not active ({running}). "
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        return message + (
            "Both onnxruntime and onnxruntime-gpu are installed and overwrite each other: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu && {pip_install('gpu')}"
        )
    if installed == ["onnxruntime"]:
        return message + (
            f"This is the CPU build: pip uninstall -y onnxruntime && {pip_install('gpu')}"
        )
    return message + "Check the driver, CUDA and cuDNN with: nvidia-smi"


def _is_installed(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version  # 3 MB that few need

    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
