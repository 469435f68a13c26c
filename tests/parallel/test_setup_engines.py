"""The engines that other tests stand on: real ones, and gone when their test is."""

import os
import signal
from pathlib import Path

import obstore
import psutil
import pytest
from obstore.store import S3Store

from tests.support import processes, s3


def _open(uri: str, server: s3.S3Server) -> S3Store:
    return S3Store.from_url(
        uri,
        endpoint=server.endpoint,
        access_key_id=server.env["AWS_ACCESS_KEY_ID"],
        secret_access_key=server.env["AWS_SECRET_ACCESS_KEY"],
        region=server.env["AWS_REGION"],
        client_options={"allow_http": True, "timeout": "5s"},
        retry_config={"max_retries": 0},
    )


def test_the_s3_server_keeps_objects_and_refuses_a_second_put_if_absent(bucket: str, s3_server: s3.S3Server) -> None:
    store = _open(bucket, s3_server)
    obstore.put(store, "a/b", b"first", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "a/b", b"second", mode="create")
    assert bytes(obstore.get(store, "a/b").bytes()) == b"first"
    assert s3_server.local(f"{bucket}/a/b").read_bytes() == b"first"
    assert s3_server.requests()["GetObject"] >= 1


def test_the_environment_of_this_process_points_at_the_s3_server(s3_server: s3.S3Server) -> None:
    assert os.environ["AWS_ENDPOINT_URL"] == s3_server.endpoint


def test_a_read_only_server_refuses_to_write(tmp_path: Path) -> None:
    with s3.serve(tmp_path, read_only=True) as server:
        with pytest.raises(obstore.exceptions.PermissionDeniedError):
            obstore.put(_open(server.bucket(), server), "a", b"x")


def test_a_killed_server_refuses_connections(tmp_path: Path) -> None:
    with s3.serve(tmp_path) as server:
        store = _open(server.bucket(), server)
        server.kill()
        with pytest.raises(obstore.exceptions.BaseError):
            obstore.put(store, "a", b"x")


def test_nothing_of_a_started_command_is_left_even_in_another_session(tmp_path: Path) -> None:
    script = "setsid sleep 600 & sleep 600 & echo up; wait"
    with processes.started(["bash", "-c", script], tmp_path) as process:
        process.wait_for_output("up", 30)
        family = processes.wait_until(
            lambda: kids if len(kids := process.children()) == 2 else None, 30, "two children"
        )
    assert family and not any(child.is_running() for child in family)


def test_a_command_that_does_not_end_is_named_with_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="still runs after 0.2 s:\nworking"):
        processes.run(["bash", "-c", "echo working >&2; exec sleep 600"], tmp_path, timeout_s=0.2)


def test_a_signal_reaches_the_command_and_its_exit_code_is_answered(tmp_path: Path) -> None:
    with processes.started(["bash", "-c", "trap 'exit 75' TERM; sleep 600 & echo up; wait"], tmp_path) as process:
        process.wait_for_output("up", 30)
        process.send(signal.SIGTERM)
        assert process.wait(30).exit_code == 75


def test_ray_runs_a_task_on_the_shared_cluster(ray_cluster: str) -> None:
    import ray

    # Left again: other tests of this process find out how joining is said.
    with ray.init(address=ray_cluster, log_to_driver=False):

        @ray.remote(num_cpus=0)
        def endpoint() -> tuple[str | None, int]:
            return os.environ.get("AWS_ENDPOINT_URL"), os.getpid()

        seen, pid = ray.get(endpoint.remote())
        assert seen == os.environ["AWS_ENDPOINT_URL"]
        assert pid != os.getpid() and psutil.pid_exists(pid)
