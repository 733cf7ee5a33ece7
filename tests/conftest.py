"""What tests of several rooms share: a small world, a run trained on it, and its bundle."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import polars as pl
import pytest
import torch

from ranklet import Ranker
from ranklet.bundle.manifest import Precision
from ranklet_export import single
from ranklet_export.export import Settings, export_bundle
from ranklet_training.data.events import Events, read_events
from ranklet_training.data.simulator import Simulation, simulate
from ranklet_training.data.split import Split, split_events
from ranklet_training.runs.checkpoint import Model, Run, read_run, write_run, write_tensors
from ranklet_training.runs.presets import RunConfig, configure
from ranklet_training.runs.start import start_run
from ranklet_training.runs.train import train

try:
    import fcntl
except ImportError:  # Windows: every test process builds its own
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).parents[1]

# One thread, so that parallel test processes do not fight over the cores, and so that a child
# process with OMP_NUM_THREADS=1 computes the same bits.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A model that trains in a second and still has every part: two blocks, two heads, features.
TINY = {
    "width": 16,
    "heads": 2,
    "feed_forward": 2,
    "max_length": 20,
    "dropout": 0.1,
    "epochs": 2,
    "targets_per_step": 256,
    "features": "genres,maker",
}


@pytest.fixture(scope="session")
def world() -> Simulation:
    return simulate(users=150, items=60, clusters=4, mean_length=15, seed=3)


@pytest.fixture(scope="session")
def events(world: Simulation) -> Events:
    return read_events(world.events)


@pytest.fixture(scope="session")
def split(events: Events) -> Split:
    return split_events(events.frame)


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    return configure(TINY)


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a path once for all test processes: the first that asks builds, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ and fcntl else base

    def build(name: str, make: Callable[[Path], object]) -> Path:
        path, half = shared / name, shared / f"{name}.half"
        with lock(shared / f"{name}.lock"):
            if not path.exists():
                shutil.rmtree(half, ignore_errors=True)
                make(half)
                half.rename(path)
        return path

    return build


@contextmanager
def lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def traced_once(build_once: Callable[..., Path]) -> Iterator[None]:
    """Trace a model once, however often it is exported: that is nine tenths of an export."""
    trace = single._trace

    def trace_once(model: single.WholeModel, axes: dict[str, Any]) -> onnx.GraphProto:
        digest = hashlib.sha256(repr((model.model.config, axes)).encode())
        for name, tensor in model.state_dict().items():
            if ".items." not in name:  # the catalogue is not traced
                digest.update(name.encode() + tensor.numpy().tobytes())

        def make(path: Path) -> None:
            path.write_bytes(trace(model, axes).SerializeToString())

        traced = build_once(f"traced-{digest.hexdigest()[:16]}", make)
        return onnx.GraphProto.FromString(traced.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "_trace", trace_once)
        yield


@pytest.fixture(scope="session")
def tiny_run(
    world: Simulation,
    events: Events,
    split: Split,
    tiny_config: RunConfig,
    build_once: Callable[..., Path],
) -> Run:
    """A trained run; tests must not write into it."""

    def make(path: Path) -> None:
        run = start_run(path, tiny_config, events, split, world.items)
        train(run, split, show_progress=False)

    return read_run(build_once("tiny-run", make))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Run, build_once: Callable[..., Path]) -> Path:
    """The bundle of ``tiny_run``, int8; tests must not write into it."""
    return build_once("tiny", lambda path: export_bundle(tiny_run.path, path))


@pytest.fixture(scope="session")
def tiny_ranker(tiny_bundle: Path) -> Ranker:
    return Ranker.load(tiny_bundle, provider="cpu")


PRECISIONS: list[Precision] = ["fp32", "fp16", "int8", "int4"]


@pytest.fixture(scope="session", params=PRECISIONS)
def any_ranker(
    request: pytest.FixtureRequest,
    tiny_run: Run,
    tiny_bundle: Path,
    build_once: Callable[..., Path],
) -> Ranker:
    """The tiny bundle in every precision."""
    if request.param == "int8":
        return Ranker.load(tiny_bundle, provider="cpu")
    settings = Settings(precision=request.param, allow_drop=0.05)  # of 150 questions
    bundle = build_once(
        f"tiny-{request.param}", lambda path: export_bundle(tiny_run.path, path, settings)
    )
    return Ranker.load(bundle, provider="cpu")


class Exported(NamedTuple):
    """A model with random weights and its bundle."""

    run: Run
    model: Model
    ranker: Ranker
    settings: Settings


# Small, so that windows roll soon.
RANDOM = {"width": 16, "heads": 2, "feed_forward": 2, "max_length": 12, "dropout": 0.0}


def write_random_run(path: Path, items: int, settings: dict[str, Any]) -> None:
    """Write a run with random weights that are large enough for every part to matter."""
    config = configure({**RANDOM, **settings})
    ids = [f"i{number:05}" for number in range(items)]
    makers = [f"maker {number % 7}" for number in range(items)]
    catalogue = pl.DataFrame(
        {"item_id": ids, "training_events": range(items, 0, -1), "maker": makers}
    )
    facts: dict[str, Any] = {"events": 9, "users": 4, "training_users": 4, "items": items}
    is_used = config.train.kinds == "use"
    facts["kinds"] = {"counts": {"buy": 2, "cart": 3, "view": 4}, "used": is_used, "why": ""}
    facts["attributes"] = {"maker": "category"}
    run = Run(path, config, {**facts, "digest": "0" * 64, "split": "none"}, {}, catalogue)
    torch.manual_seed(1)
    model = run.build_model()
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.items.item[0] = 0
    path.mkdir()
    write_run(run)
    write_tensors(path / "best.safetensors", dict(model.state_dict()), {})


@pytest.fixture(scope="session")
def random_run(build_once: Callable[..., Path]) -> Callable[..., Run]:
    """Make a run of random weights, once: ``random_run(items=60, width=16)``."""

    def make(items: int = 60, **settings: Any) -> Run:
        name = f"run-{items}-" + "-".join(map(str, settings.items()))
        return read_run(build_once(name, lambda path: write_random_run(path, items, settings)))

    return make


@pytest.fixture(scope="session")
def exported(
    random_run: Callable[..., Run], build_once: Callable[..., Path]
) -> Callable[..., Exported]:
    """Make a bundle of random weights, once: ``exported(Settings(...), width=16)``.

    Tests must not write into it.
    """
    made: dict[str, Exported] = {}

    def make(how: Settings = FP32, **settings: Any) -> Exported:
        key = "-".join(map(str, [*asdict(how).values(), *settings.items()]))
        if key not in made:
            run = random_run(**settings)
            bundle = build_once(key, lambda path: export_bundle(run.path, path, how))
            made[key] = Exported(run, run.load_model(), Ranker.load(bundle, provider="cpu"), how)
        return made[key]

    return make


FP32, INT8, COMPACT = Settings(precision="fp32"), Settings(precision="int8"), Settings(compact=True)
MODELS: dict[str, tuple[Settings, dict[str, Any]]] = {
    "two blocks, two heads": (INT8, {}),
    "two blocks, one head": (FP32, {"heads": 1, "scoring": "dot"}),
    "three blocks": (INT8, {"blocks": 3}),
    "a window of 5": (INT8, {"attention_window": 5}),
    "three blocks, a window of 3": (FP32, {"blocks": 3, "attention_window": 3}),
    "one block": (INT8, {"blocks": 1, "heads": 1, "activation": "swiglu"}),
    "gated, one head": (COMPACT, {"block": "gated", "heads": 1, "activation": "swiglu"}),
    "gated, two heads": (Settings(precision="fp16"), {"block": "gated", "scoring": "dot"}),
    "times": (FP32, {"time_gaps": True}),
    "kinds": (INT8, {"kinds": "use"}),
    "zero-block": (INT8, {"blocks": 0}),
    "seed": (INT8, {"kind": "seed", "heads": 1}),
    "one event": (FP32, {"blocks": 1, "max_length": 1}),
}


# These have every part between them; the others are slow.
USUAL = {"two blocks, two heads", "three blocks, a window of 3", "gated, one head", "times"}
DEGENERATE = ["one block", "zero-block", "seed", "one event"]
EACH = [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="session", params=EACH)
def any_model(request: pytest.FixtureRequest, exported: Callable[..., Exported]) -> Exported:
    """A bundle of random weights, of every shape that a model can have."""
    settings, model = MODELS[request.param]
    return exported(settings, **model)


@pytest.fixture(scope="session", params=DEGENERATE)
def degenerate_model(request: pytest.FixtureRequest, exported: Callable[..., Exported]) -> Exported:
    """A bundle of random weights that lacks a part which others have."""
    settings, model = MODELS[request.param]
    return exported(settings, **model)


@pytest.fixture(scope="session")
def shipped_bundle() -> Path:
    return ROOT / "models" / "ml-latest-small"


@pytest.fixture(scope="session")
def shop_bundle(build_once: Callable[..., Path]) -> Path:
    """The bundle of examples/shop.py, which takes a while; tests must not write into it."""

    def make(path: Path) -> None:
        command = [sys.executable, ROOT / "examples" / "shop.py", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return build_once("example-shop", make)


@pytest.fixture(scope="session")
def run_example() -> Callable[[Path, list[Any]], tuple[list[str], list[float]]]:
    """Rank with a bundle as examples/plain_onnxruntime.py does, in a process of its own."""

    def run(bundle: Path, history: list[Any]) -> tuple[list[str], list[float]]:
        command = [sys.executable, "-I", "-W", "error", ROOT / "examples" / "plain_onnxruntime.py"]
        command += [bundle, ",".join(map(str, history)), "10"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        return [item for item, _ in rows], [float(score) for _, score in rows]

    return run
