from pathlib import Path

import pytest

from commands import run
from ranklet import InputError, Ranker
from ranklet_export.mlflow import write_mlflow

# mlflow itself still uses what pydantic and others deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_loaded_model_ranks_frames_like_the_ranker(shipped_bundle: Path, tmp_path: Path) -> None:
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="mlflow-skinny is not installed")
    pandas = pytest.importorskip("pandas")
    run("export-to", "mlflow", shipped_bundle, tmp_path / "films")
    model, ranker = pyfunc.load_model(str(tmp_path / "films")), Ranker.load(shipped_bundle)
    histories = [list(ranker.ids[:3]), list(ranker.ids[5:6])]
    frame = pandas.DataFrame({"history": histories}, index=[7, 8])
    answers = model.predict(frame, params={"k": 4})
    assert list(answers.index) == [7, 8]
    for history, items, scores in zip(histories, answers["items"], answers["scores"], strict=True):
        ranking = ranker.rank(history, k=4)
        assert items == list(ranking.items)
        assert scores == pytest.approx(ranking.scores.tolist(), abs=1e-6)
    assert model.metadata.signature.inputs.input_names() == ["history"]
    assert len(model.predict(frame)["items"][7]) == 10


def test_a_folder_that_exists_is_refused(shipped_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow.pyfunc", reason="mlflow-skinny is not installed")
    with pytest.raises(InputError, match="exists"):
        write_mlflow(shipped_bundle, tmp_path)
