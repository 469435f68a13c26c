"""What every store promises. Each backend subclasses the one contract."""

import os
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from mltrain.errors import ConflictError, NotFoundError
from mltrain.storage import Store, open_store
from tests.support.s3 import S3Server

_PARTS = 20 << 20  # more than two parts of an upload or a download


class StoreContract:
    """Subclasses give a fixture ``store``: an empty one."""

    def test_what_was_put_is_got(self, store: Store) -> None:
        meta = store.put("a/b.json", b"one")
        assert store.get("a/b.json") == b"one"
        assert (meta.path, meta.size_bytes) == ("a/b.json", 3)
        store.put("a/b.json", memoryview(pa.py_buffer(b"two!")))  # signed bytes, as Arrow has them
        assert store.get("a/b.json") == b"two!"

    def test_an_empty_object_is_an_object(self, store: Store, tmp_path: Path) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert store.get_range("empty", 0, 10) == b""
        assert store.exists("empty")
        assert store.download("empty", tmp_path / "empty").size_bytes == 0
        assert (tmp_path / "empty").read_bytes() == b""

    def test_what_is_absent_is_not_found_by_its_full_name(self, store: Store, tmp_path: Path) -> None:
        for read in (
            lambda: store.get("a/none"),
            lambda: store.get_with_tag("a/none"),
            lambda: store.get_range("a/none", 0, 1),
            lambda: store.download("a/none", tmp_path / "none"),
        ):
            with pytest.raises(NotFoundError) as caught:
                read()
            assert store.join("a/none") in str(caught.value)
        assert store.head("a/none") is None
        assert not store.exists("a/none")
        assert list(store.list("a")) == []

    def test_a_folder_is_not_an_object(self, store: Store) -> None:
        store.put("folder/object", b"1")
        assert not store.exists("folder")
        with pytest.raises(NotFoundError):
            store.get("folder")

    def test_ranges_end_where_the_object_ends(self, store: Store) -> None:
        store.put("digits", b"0123456789")
        assert store.get_range("digits", 3, 4) == b"3456"
        assert store.get_range("digits", 8, 100) == b"89"
        assert store.get_range("digits", 10, 5) == b""
        assert store.get_range("digits", 50, 5) == b""
        assert store.get_range("digits", 3, 0) == b""

    def test_files_of_many_parts_go_up_and_down_whole(self, store: Store, tmp_path: Path) -> None:
        data = os.urandom(_PARTS + 7)
        (tmp_path / "up").write_bytes(data)
        assert store.upload("big/file.arrow", tmp_path / "up").size_bytes == len(data)
        assert store.download("big/file.arrow", tmp_path / "down").size_bytes == len(data)
        assert (tmp_path / "down").read_bytes() == data
        assert store.get("big/file.arrow") == data
        assert store.get_range("big/file.arrow", _PARTS, 100) == data[_PARTS:]

    def test_upload_replaces_and_small_files_too(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"small")
        store.put("object", b"before")
        store.upload("object", tmp_path / "file")
        assert store.get("object") == b"small"

    def test_head_says_size_and_time(self, store: Store) -> None:
        store.put("object", b"12345")
        meta = store.head("object")
        assert meta is not None
        assert (meta.path, meta.size_bytes) == ("object", 5)
        assert abs(meta.modified - datetime.now(UTC)) < timedelta(minutes=5)

    def test_put_if_absent_writes_once(self, store: Store) -> None:
        assert store.put_if_absent("a/manifest.json", b"first") is True
        assert store.put_if_absent("a/manifest.json", b"second") is False
        assert store.put_if_absent("a/manifest.json", b"first") is False
        assert store.get("a/manifest.json") == b"first"

    def test_put_if_match_replaces_the_version_it_names(self, store: Store) -> None:
        first = store.put_if_match("pointer", b"1", None)
        second = store.put_if_match("pointer", b"2", first)
        assert store.get_with_tag("pointer") == (b"2", second)
        assert first != second

    def test_put_if_match_refuses_another_version(self, store: Store) -> None:
        first = store.put_if_match("pointer", b"1", None)
        store.put_if_match("pointer", b"2", first)
        for tag in (first, None):
            with pytest.raises(ConflictError) as caught:
                store.put_if_match("pointer", b"3", tag)
            assert store.join("pointer") in str(caught.value)
        assert store.get("pointer") == b"2"

    def test_put_if_match_refuses_what_is_gone(self, store: Store) -> None:
        tag = store.put_if_match("pointer", b"1", None)
        store.delete("pointer")
        with pytest.raises(ConflictError):
            store.put_if_match("pointer", b"2", tag)
        assert not store.exists("pointer")

    def test_the_tag_of_any_put_fits_put_if_match(self, store: Store) -> None:
        store.put("pointer", b"1")
        _, tag = store.get_with_tag("pointer")
        store.put_if_match("pointer", b"2", tag)
        assert store.get("pointer") == b"2"

    def test_list_is_sorted_and_by_folder(self, store: Store) -> None:
        for path in ("b", "a/2", "a/10", "a.b", "a/c/d", "ab/x"):
            store.put(path, path.encode())
        assert [meta.path for meta in store.list()] == sorted(["b", "a/2", "a/10", "a.b", "a/c/d", "ab/x"])
        assert [meta.path for meta in store.list("a")] == ["a/10", "a/2", "a/c/d"]
        assert [meta.size_bytes for meta in store.list("ab")] == [4]

    def test_list_goes_beyond_a_page(self, store: Store) -> None:
        paths = [f"many/{number:05d}" for number in range(1005)]
        for path in paths:
            store.put(path, b"")
        assert [meta.path for meta in store.list("many")] == paths

    def test_conditional_writes_leave_nothing_in_lists(self, store: Store) -> None:
        tag = store.put_if_match("folder/pointer", b"1", None)
        store.put_if_match("folder/pointer", b"2", tag)
        store.put_if_absent("folder/pointer", b"3")
        assert [meta.path for meta in store.list()] == ["folder/pointer"]

    def test_delete_removes_and_forgives(self, store: Store) -> None:
        store.put("object", b"1")
        store.delete("object")
        store.delete("object")
        store.delete("never/was")
        assert not store.exists("object")

    def test_a_sub_store_is_a_folder_of_the_store(self, store: Store) -> None:
        below = store.sub("runs/one")
        below.put("config.yaml", b"1")
        assert store.get("runs/one/config.yaml") == b"1"
        assert below.uri == store.join("runs/one")
        assert below.join("config.yaml") == store.join("runs/one/config.yaml")
        assert [meta.path for meta in below.list()] == ["config.yaml"]
        below.put_if_match("lease.json", b"b", below.put_if_match("lease.json", b"a", None))
        assert store.get("runs/one/lease.json") == b"b"

    def test_a_store_survives_pickling(self, store: Store) -> None:
        store.put("object", b"1")
        for copy in (pickle.loads(pickle.dumps(store)), pickle.loads(pickle.dumps(store.sub("x")))):
            assert copy.uri.startswith(store.uri)
        assert pickle.loads(pickle.dumps(store)).get("object") == b"1"

    def test_names_may_hold_spaces_and_letters_of_any_script(self, store: Store) -> None:
        for path in ("a b/c d", "größe/日本", "q=1/x+y%20z"):
            store.put(path, path.encode())
            assert store.get(path) == path.encode()
        assert len(list(store.list())) == 3

    @pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", "."])
    def test_a_path_that_leaves_the_store_is_refused(self, store: Store, path: str) -> None:
        with pytest.raises(ValueError, match="object path"):
            store.put(path, b"1")

    def test_a_writable_place_passes_the_probe_and_keeps_nothing_of_it(self, store: Store) -> None:
        store.check_writable()
        assert list(store.list()) == []


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(tmp_path / "a root")


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, s3_server: S3Server) -> Store:
        return open_store(s3_server.bucket(), deadline_s=20)


class TestS3StoreBelowAPrefix(StoreContract):
    @pytest.fixture
    def store(self, s3_server: S3Server) -> Store:
        return open_store(f"{s3_server.bucket().replace('s3:', 's3a:')}/team/pro d/", deadline_s=20)
