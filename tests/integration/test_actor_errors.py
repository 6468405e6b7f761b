"""What reaches the driver of an actor's exception."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from rlgaf_ray.actors.answers import ActorNotStarted, Answers
from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError

MISTAKE = UserError("discriminator.frozen_layers=5, but the model has 4: set at most 4")


class Worker:
    def __init__(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error

    def work(self, error: Exception) -> None:
        raise error


RemoteWorker = ray.remote(num_cpus=0)(Worker)


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(load_config()):
        yield


def call(worker: object, *arguments: object) -> None:
    answers = Answers({worker: "the learner"}, timeout=600.0)
    method = worker.work if arguments else worker.__ray_ready__  # type: ignore[attr-defined]
    answers.get(worker, "work", method.remote(*arguments))


def test_a_users_mistake_is_raised_as_it_was(session) -> None:
    with pytest.raises(UserError) as caught:
        call(RemoteWorker.remote(), MISTAKE)
    assert type(caught.value) is UserError and str(caught.value) == str(MISTAKE)
    with pytest.raises(UserError) as caught:
        call(RemoteWorker.remote(MISTAKE))
    assert type(caught.value) is UserError and str(caught.value) == str(MISTAKE)


def test_a_bug_keeps_its_remote_traceback(session) -> None:
    with pytest.raises(RayTaskError, match="in work") as caught:
        call(RemoteWorker.remote(), ValueError("unexpected"))
    assert not isinstance(caught.value, UserError)
    with pytest.raises(ActorNotStarted, match="the learner could not be built: ValueError: unexpected") as failure:
        call(RemoteWorker.remote(ValueError("unexpected")))
    assert isinstance(failure.value.__cause__, RayActorError) and "in __init__" in str(failure.value.__cause__)
