"""MLflow tracker; configured by MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLflow's authentication variables."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlgaf_ray.tracking.base import PROJECT, TrackedRun, Tracker
from rlgaf_ray.types import Metrics

RUN_ID_FILE = "mlflow_run.txt"  # in the run's folder: the id of its MLflow run
STEPS = "iteration"  # a metric that equals its step: one request returns the iterations that MLflow has
PARAMS_PER_REQUEST = 100
PARAM_LENGTH = 6000
# MLflow's defaults, 120 s and 7 retries, would block the end of a run for too long
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class MlflowTracker(Tracker):
    """Logs to one MLflow run, which a resumed run continues.

    MLflow cannot delete the values of a step. After a rollback the MLflow run is deleted (``mlflow gc`` removes it for
    good), and a new one gets the remaining values.
    """

    def start(self, run: TrackedRun) -> None:
        for name, value in LIMITS.items():
            os.environ.setdefault(name, value)
        import mlflow

        self.metric = mlflow.entities.Metric
        self.client = mlflow.MlflowClient()
        self.tables: dict[str, list[dict[str, Any]]] = {}
        id_file = run.folder / RUN_ID_FILE
        logged = self._logged(id_file.read_text(encoding="utf-8")) if id_file.is_file() else None
        kept = [row["iteration"] for row in run.rows]
        if logged and logged == kept[: len(logged)]:
            self.run_id, after = id_file.read_text(encoding="utf-8"), logged[-1]
            self.client.update_run(self.run_id, status="RUNNING")
            for table in run.tables:
                if table["iteration"] <= after:
                    self._add(table["iteration"], table["name"], table["rows"])
        else:
            if logged is not None:
                self.client.delete_run(id_file.read_text(encoding="utf-8"))
            self.run_id, after = self._create(run), -1
            id_file.write_text(self.run_id, encoding="utf-8")
        run.replay(self, after=after)

    def log(self, iteration: int, metrics: Metrics) -> None:
        now = time.time_ns() // 1_000_000
        values = {STEPS: float(iteration), **metrics}
        self.client.log_batch(self.run_id, [self.metric(name, value, now, iteration) for name, value in values.items()])

    def log_table(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log one artifact per name with the tables of all iterations; ``mlflow.load_table`` reads it."""
        all_rows = self._add(iteration, name, rows)
        columns = list(all_rows[0])
        split = {"columns": columns, "data": [[row[column] for column in columns] for row in all_rows]}
        self.client.log_dict(self.run_id, split, _artifact(name))
        artifacts = [{"path": _artifact(table), "type": "table"} for table in self.tables]
        self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(artifacts))

    def close(self) -> None:
        self.client.set_terminated(self.run_id)

    def _add(self, iteration: int, name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        kept = self.tables.setdefault(name, [])
        kept += [{"iteration": iteration, **row} for row in rows]
        return kept

    def _create(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        run_id = self.client.create_run(experiment_id, run_name=run.name).info.run_id
        from mlflow.entities import Param

        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flattened(run.config)]
        for first in range(0, len(params), PARAMS_PER_REQUEST):
            self.client.log_batch(run_id, params=params[first : first + PARAMS_PER_REQUEST])
        return run_id

    def _logged(self, run_id: str) -> list[int] | None:
        """Return the sorted iterations that MLflow has of this run; None if the run does not exist or is deleted."""
        from mlflow.exceptions import MlflowException

        try:
            if self.client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return sorted(metric.step for metric in self.client.get_metric_history(run_id, STEPS))


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a config tree with their dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _artifact(name: str) -> str:
    return f"{name}.json"
