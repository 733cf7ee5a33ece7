"""An MLflow model of a bundle: a frame of histories in, item ids and scores out."""

import logging
import os
from pathlib import Path

from ranklet import Ranker, __version__
from ranklet.errors import InputError
from ranklet.files.atomic import atomic_folder

MODEL = Path(__file__).with_name("mlflow_model.py")


def write_mlflow(bundle: Path, path: Path) -> None:
    """Write a model that ``mlflow.pyfunc.load_model`` loads and ``mlflow models serve`` serves.

    Args:
        bundle: The folder of a bundle.
        path: The new folder of the model.

    Raises:
        BundleError: The bundle is missing or damaged.
        InputError: The folder exists.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    import pandas
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    ranker = Ranker.load(bundle, provider="cpu")
    if path.exists():
        raise InputError(f"{path} exists: choose another name")
    ids = DataType.string if ranker.manifest.id_type == "string" else DataType.long
    signature = ModelSignature(
        inputs=Schema([ColSpec(Array(ids), "history")]),
        outputs=Schema([ColSpec(Array(ids), "items"), ColSpec(Array(DataType.float), "scores")]),
        params=ParamSchema([ParamSpec("k", DataType.long, 10)]),
    )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with atomic_folder(path) as new:
        mlflow.pyfunc.save_model(
            new,
            python_model=str(MODEL),
            artifacts={"bundle": str(bundle)},
            signature=signature,
            input_example=pandas.DataFrame({"history": [list(ranker.ids[:2])]}),
            pip_requirements=[f"ranklet[cpu]=={__version__}", "pandas"],
        )
