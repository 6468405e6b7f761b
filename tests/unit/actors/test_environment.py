"""Unusual environments: no home, long temporary paths, proxies, empty and invalid addresses."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.node import validate_socket_filepath

from rlgaf_ray.actors import cluster, environment
from rlgaf_ray.actors.environment import (
    endpoint,
    named_address,
    prepare_environment,
    short_temporary_folder,
    token,
    user_name,
    without_proxy,
)
from rlgaf_ray.config import load_config
from rlgaf_ray.errors import UserError


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        (None, " ", None),
        ("", "", None),
        (None, "local", None),
        (None, "head:6379", "head:6379"),
        ("other:6379", "head:6379", "other:6379"),
        ("auto", "", "auto"),
    ],
)
def test_an_empty_address_means_a_local_ray(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, variable: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert named_address(configured) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head.example:10001", ("head.example", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("ray://[2001:db8::7]:10001", ("2001:db8::7", 10001)),
        ("auto", (None, None)),
        ("service://somewhere/else", (None, None)),
    ],
)
def test_endpoints(address: str, expected: tuple[str | None, int | None]) -> None:
    assert endpoint(address) == expected


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example"])
def test_the_address_of_the_jobs_api_is_rejected(address: str) -> None:
    with pytest.raises(UserError, match=f"^{address} is the address of Ray's Jobs API.* 'ray job submit --address "):
        prepare_environment(address)


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "::1", "::1:6379", "head:port", "head:99999", "[::1:2"])
def test_an_invalid_address_gives_one_line(address: str) -> None:
    with pytest.raises(
        UserError, match=r" is not the address of a Ray cluster: set cluster\.address or RAY_ADDRESS to HOST"
    ):
        prepare_environment(address)


def test_probe_reaches_an_ipv6_address() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with listener:
        cluster.probe(f"[::1]:{listener.getsockname()[1]}")


def test_without_proxy_extends_the_no_proxy_list() -> None:
    assert without_proxy({}, ("127.0.0.1",)) == {}
    assert without_proxy({"no_proxy": "a"}, ("127.0.0.1",)) == {}
    given = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "a.example, 127.0.0.1", "NO_PROXY": "b.example"}
    listed = "a.example,127.0.0.1,b.example,::1"
    assert without_proxy(given, ("127.0.0.1", "::1")) == {"no_proxy": listed, "NO_PROXY": listed}


def test_the_cluster_address_bypasses_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    prepare_environment("10.0.0.1:6379")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1,10.0.0.1"


def test_a_temporary_folder_too_long_for_sockets_is_replaced(tmp_path: Path) -> None:
    long = tmp_path / "scratch_of_a_cluster_job" / "user_name" / "job_1234567" / "node_0001"
    assert short_temporary_folder({"TMPDIR": "/tmp"}) == {} == short_temporary_folder({})
    changes = {"RAY_TMPDIR": "/tmp", "VLLM_RPC_BASE_PATH": "/tmp"}
    assert short_temporary_folder({"TMPDIR": str(long)}) == changes
    assert short_temporary_folder({"TMPDIR": str(long), "RAY_TMPDIR": "/tmp"}) == {}
    assert short_temporary_folder({"TMPDIR": "/proc/none"}) == changes, "not writable"
    for name in ("RAY_TMPDIR", "TMPDIR"):
        with pytest.raises(UserError, match=rf"^{name}=.*node_0001 cannot hold Ray's sockets: set RAY_TMPDIR to an"):
            short_temporary_folder({name: str(long)}, others=[str(long)])
    with pytest.raises(UserError, match=r"^RAY_TMPDIR=\.tmp cannot hold Ray's sockets: set RAY_TMPDIR to an absolute"):
        short_temporary_folder({"RAY_TMPDIR": ".tmp"})
    assert not long.exists()


def test_a_temporary_folder_of_another_user_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def made(folder: str) -> bool:
        return folder != "/tmp"

    monkeypatch.setattr(environment, "_takes_sockets", made)
    own = f"/tmp/rlgaf-{os.getuid()}"
    assert short_temporary_folder({}) == {"RAY_TMPDIR": own, "VLLM_RPC_BASE_PATH": own}


def test_ray_accepts_the_longest_allowed_folder() -> None:
    longest = "/" + "x" * (environment.SOCKET_BYTES - environment.RAY_SOCKET - 1)
    session = "session_2026-01-01_00-00-00_000000_4194304"
    validate_socket_filepath(f"{longest}/ray/{session}/sockets/plasma_store")
    with pytest.raises(OSError, match="cannot exceed"):
        validate_socket_filepath(f"{longest}xxx/ray/{session}/sockets/plasma_store")


@pytest.mark.parametrize("home", ["/proc/nobody", "/dev/null", ""])
def test_ray_gets_a_token_without_a_writable_home(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    def nameless(user_id: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user_id}")

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.setenv("HOME", home)
    if not home:
        monkeypatch.delenv("HOME")
    (value,) = token({}).values()
    assert len(value) == 64
    for given in ({"RAY_AUTH_TOKEN": "a"}, {"RAY_AUTH_TOKEN_PATH": "/a"}, {"RAY_AUTH_MODE": "disabled"}):
        assert token(given) == {}


def test_no_token_is_set_with_a_writable_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token({}) == {}
    (tmp_path / ".ray/auth_token").write_text("token")
    assert token({}) == {}


def test_a_user_id_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    assert user_name() == {}

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert user_name() == {"USER": f"user-{os.getuid()}"}


@pytest.mark.parametrize("own", [None, "9"])
def test_a_dashboard_may_take_longer_than_rays_minute(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "RAY_DASHBOARD_STARTUP_TIMEOUT_S", 9)
    monkeypatch.delenv("RAY_DASHBOARD_STARTUP_TIMEOUT_S", raising=False)
    if own is not None:
        monkeypatch.setenv("RAY_DASHBOARD_STARTUP_TIMEOUT_S", own)
    prepare_environment("auto")
    assert (ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S == 9) is (own is not None)


def test_uv_does_not_upload_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in ((None, False), ("1", True)):
        monkeypatch.setattr(ray_constants, environment.UV_HOOK, True)
        monkeypatch.delenv(environment.UV_HOOK, raising=False)
        if name:
            monkeypatch.setenv(environment.UV_HOOK, name)
        prepare_environment("auto")
        assert expected == ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV


def test_ray_starts_in_a_prepared_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 60)
    monkeypatch.setenv("RAY_TMPDIR", "")  # set here so that monkeypatch restores it
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp")
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr("ray.init", lambda *words, **_: started.append((*words, os.environ["RAY_TMPDIR"])))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with cluster.ray_session(load_config()):
        assert started == [("local", "/tmp")]


@pytest.mark.slow
def test_ray_starts_without_a_home_and_with_a_proxy(tmp_path: Path) -> None:
    long = tmp_path / ("scratch_of_a_cluster_job" * 3)
    long.mkdir()
    odd = {"HOME": "/proc/nobody", "TMPDIR": str(long), "RAY_ADDRESS": "", "http_proxy": "http://127.0.0.1:9"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = (
        "import ray; from rlgaf_ray.actors.cluster import ray_session; from rlgaf_ray.config import load_config\n"
        "with ray_session(load_config(None, ['cluster.num_cpus=2'])):\n"
        "    print(ray.get(ray.remote(lambda: 'done').remote()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=kept | odd, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "done", done.stderr
