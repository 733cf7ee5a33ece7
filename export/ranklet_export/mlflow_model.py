"""What MLflow loads: a ranker of the bundle among the artifacts."""

from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from ranklet import Ranker


class RankletModel(PythonModel):  # type: ignore[misc]
    """Ranks for a frame with a column ``history`` of lists of item ids, oldest first."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle."""
        self.ranker = Ranker.load(context.artifacts["bundle"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pandas.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pandas.DataFrame:
        """Return a frame with columns ``items`` and ``scores``; ``params`` may hold ``k``."""
        k = int((params or {}).get("k", 10))
        rankings = self.ranker.rank_batch(list(model_input["history"]), k=k)
        return pandas.DataFrame(
            {
                "items": [list(ranking.items) for ranking in rankings],
                "scores": [ranking.scores.tolist() for ranking in rankings],
            },
            index=model_input.index,
        )


set_model(RankletModel())
