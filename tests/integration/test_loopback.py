"""A Ray that a run starts for itself is reached from this machine alone."""

from __future__ import annotations

from ipaddress import ip_address

import psutil
import pytest
import ray

from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.config import load_config


def listening() -> set[tuple[str, int]]:
    """Addresses and ports of this process and of all that it started."""
    program = psutil.Process()
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in (program, *program.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def is_loopback(text: str) -> bool:
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.parametrize(
    "num_workers",
    [pytest.param(1, id="without dashboard"), pytest.param(2, id="with dashboard", marks=pytest.mark.slow)],
)
def test_a_ray_of_the_runs_own_listens_on_loopback_alone(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = listening()
    with ray_session(load_config(None, [f"warmup.num_workers={num_workers}", "cluster.num_cpus=1"])):
        assert ray.get(ray.remote(ray.util.get_node_ip_address).remote()) == "127.0.0.1"
        opened = listening() - before
    assert len(opened) > 4 and all(is_loopback(address) for address, _ in opened), opened
