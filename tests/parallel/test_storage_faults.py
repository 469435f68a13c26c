"""An S3 server behind a proxy that refuses, cuts and loses."""

import time
from pathlib import Path

import pytest

from mltrain.errors import ConflictError, StorageAccessError, StorageError
from mltrain.storage import Store, open_store
from tests.support.faults_http import Fault, FaultyProxy
from tests.support.s3 import S3Server


@pytest.fixture
def store(proxy: FaultyProxy, s3_server: S3Server) -> Store:
    return open_store(s3_server.bucket(), deadline_s=20)


_PASSING = [Fault.UNAVAILABLE, Fault.CUT_BEFORE, Fault.LOSE_ANSWER]


@pytest.mark.parametrize("fault", _PASSING)
def test_every_operation_outlasts_a_passing_fault(
    store: Store, proxy: FaultyProxy, fault: Fault, tmp_path: Path
) -> None:
    def failing() -> None:
        proxy.fail(fault, times=2)

    failing()
    store.put("a", b"1")
    failing()
    assert store.get("a") == b"1"
    failing()
    assert store.get_range("a", 0, 1) == b"1"
    failing()
    assert store.head("a") is not None
    failing()
    assert store.put_if_absent("b", b"2") is True
    failing()
    assert [meta.path for meta in store.list()] == ["a", "b"]
    failing()
    store.download("a", tmp_path / "a")
    failing()
    store.delete("b")
    assert proxy.met[fault] == 16
    assert [meta.path for meta in store.list()] == ["a"]


def test_put_if_absent_whose_answer_was_lost_is_ours(store: Store, proxy: FaultyProxy) -> None:
    proxy.fail(Fault.LOSE_ANSWER, method="PUT")
    assert store.put_if_absent("manifest.json", b"mine") is True
    assert store.get("manifest.json") == b"mine"


def test_put_if_absent_after_a_lost_answer_is_not_ours_if_somebody_else_wrote(store: Store, proxy: FaultyProxy) -> None:
    store.put("manifest.json", b"theirs")
    proxy.fail(Fault.LOSE_ANSWER, method="PUT")
    assert store.put_if_absent("manifest.json", b"mine") is False
    assert store.get("manifest.json") == b"theirs"


def test_put_if_absent_of_equal_content_is_not_ours_without_a_lost_answer(store: Store, proxy: FaultyProxy) -> None:
    store.put("manifest.json", b"same")
    proxy.fail(Fault.CONFLICT, method="PUT")  # refused for now: it cannot have been carried out
    assert store.put_if_absent("manifest.json", b"same") is False


def test_put_if_match_whose_answer_was_lost_is_ours(store: Store, proxy: FaultyProxy) -> None:
    first = store.put_if_match("pointer", b"1", None)
    proxy.fail(Fault.LOSE_ANSWER, method="PUT")
    second = store.put_if_match("pointer", b"2", first)
    assert store.get_with_tag("pointer") == (b"2", second)
    proxy.fail(Fault.LOSE_ANSWER, method="PUT")
    store.put_if_match("pointer 2", b"1", None)


def test_put_if_match_after_a_lost_answer_sees_who_wrote_since(store: Store, proxy: FaultyProxy) -> None:
    first = store.put_if_match("pointer", b"1", None)
    store.put("pointer", b"theirs")
    proxy.fail(Fault.LOSE_ANSWER, method="PUT")
    with pytest.raises(ConflictError):
        store.put_if_match("pointer", b"2", first)
    assert store.get("pointer") == b"theirs"


def test_a_body_that_is_cut_short_is_read_again(store: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    data = bytes(range(256)) * (80 << 10)  # 20 MiB: parts of 8
    store.put("shard.arrow", data)
    proxy.fail(Fault.CUT_BODY, method="GET", part_of_path="shard.arrow", times=4)
    assert store.download("shard.arrow", tmp_path / "shard").size_bytes == len(data)
    assert (tmp_path / "shard").read_bytes() == data
    proxy.fail(Fault.CUT_BODY, method="GET", part_of_path="shard.arrow", times=2)
    assert store.get("shard.arrow") == data
    assert proxy.met[Fault.CUT_BODY] == 6


def test_an_answer_that_is_short_without_saying_so_is_asked_for_again(
    store: Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    data = bytes(range(256)) * (40 << 10)  # 10 MiB: parts of 8
    store.put("object", data)
    proxy.fail(Fault.SHORT_BODY, method="GET", times=2)
    assert store.get("object") == data
    proxy.fail(Fault.SHORT_BODY, method="GET", times=2)
    store.download("object", tmp_path / "object")
    assert (tmp_path / "object").read_bytes() == data
    proxy.fail(Fault.SHORT_BODY, method="GET")
    assert store.get_range("object", 5, 100) == data[5:105]
    assert proxy.met[Fault.SHORT_BODY] == 5


def test_an_upload_outlasts_faults_of_its_parts(store: Store, proxy: FaultyProxy, tmp_path: Path) -> None:
    data = bytes(range(256)) * (80 << 10)
    (tmp_path / "file").write_bytes(data)
    proxy.fail(Fault.UNAVAILABLE, method="PUT", times=2)
    proxy.fail(Fault.LOSE_ANSWER, method="POST")
    store.upload("big", tmp_path / "file")
    assert store.get("big") == data


def test_past_the_deadline_the_error_names_object_answer_and_remedy(proxy: FaultyProxy, s3_server: S3Server) -> None:
    store = open_store(s3_server.bucket(), deadline_s=1.0)
    proxy.fail(Fault.UNAVAILABLE, times=1000)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        store.get("runs/a/config.yaml")
    assert time.monotonic() - started < 30
    message = str(caught.value)
    for part in (store.join("runs/a/config.yaml"), "1 s", "503", "SlowDown", "storage.deadline_s"):
        assert part in message
    assert caught.value.exit_code == 1


def test_a_server_that_hangs_is_given_up(s3_server: S3Server) -> None:
    store = open_store(s3_server.bucket(), deadline_s=1.5)
    store.put("a", b"1")
    s3_server.pause()
    try:
        with pytest.raises(StorageError, match="tries"):
            store.get("a")
    finally:
        s3_server.resume()
    assert store.get("a") == b"1"


def test_a_root_whose_server_is_not_there_is_refused_as_a_request(
    monkeypatch: pytest.MonkeyPatch, s3_server: S3Server
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageAccessError, match="cannot be written"):
        open_store("s3://bucket", deadline_s=0.5).check_writable()


@pytest.mark.parametrize(
    ("variable", "value", "seen"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "credentials"),
    ],
)
def test_wrong_credentials_are_refused_at_once(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, seen: str
) -> None:
    bucket = s3_server.bucket()
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageAccessError, match=seen) as caught:
        open_store(bucket, deadline_s=60).check_writable()
    assert caught.value.exit_code == 2
    assert "wrong" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_refused_at_once(s3_server: S3Server) -> None:
    store = open_store("s3://no-such-bucket/prefix", deadline_s=60)
    with pytest.raises(StorageAccessError, match="NoSuchBucket"):
        store.check_writable()
    with pytest.raises(StorageAccessError, match="NoSuchBucket"):
        list(store.list())


def test_a_change_in_the_middle_of_a_download_starts_it_again(
    store: Store, proxy: FaultyProxy, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    direct = open_store(store.uri)
    before, after = b"a" * (20 << 20), b"b" * (20 << 20)
    store.put("object", before)
    reads: list[str] = []

    def change_before_the_second(method: str, path: str) -> None:
        if method == "GET":
            reads.append(path)
            if len(reads) == 2:
                direct.put("object", after)

    proxy.before_request = change_before_the_second
    store.download("object", tmp_path / "object")
    assert (tmp_path / "object").read_bytes() == after


def test_no_credentials_anywhere_are_named_at_once(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StorageAccessError, match="AWS_ACCESS_KEY_ID"):
        open_store(s3_server.bucket(), deadline_s=60).get("a")
