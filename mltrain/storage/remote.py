"""Object stores through obstore. Retries are ours: who repeats a conditional write must know that it was repeated."""

import io
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from mltrain.config.uri import Location, parse
from mltrain.errors import ConfigError, ConflictError, NotFoundError, StorageError
from mltrain.storage.answers import Answer, Failure, explain
from mltrain.storage.environment import object_store_options
from mltrain.storage.store import ObjectMeta, Store, checked

if TYPE_CHECKING:
    from obstore import GetOptions, PutMode
    from obstore import ObjectMeta as RawMeta

T = TypeVar("T")
Client = S3Store | GCSStore | AzureStore

_log = logging.getLogger(__name__)

# One request moves at most this much, so that a link of 1 MB/s still finishes it in time.
_PART_BYTES = 8 << 20
_PARALLEL_PARTS = 4
_REQUEST_S = 30.0
_FIRST_CONTACT_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class RemoteStore(Store):
    """A prefix of a bucket in S3 (or a compatible server), GCS or Azure."""

    def __init__(self, place: Location, deadline_s: float, client: Client | None = None) -> None:
        self.uri = str(place)
        self._place = place
        self._deadline_s = deadline_s
        self._client = _connect(place, deadline_s) if client is None else client
        self._reached = False

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self._place, self._deadline_s)

    def sub(self, prefix: str) -> "RemoteStore":
        return RemoteStore(parse(self.join(checked(prefix))), self._deadline_s, self._client)

    def get(self, path: str) -> bytes:
        return self.get_with_tag(path)[0]

    def get_with_tag(self, path: str) -> tuple[bytes, str]:
        sink = io.BytesIO()
        meta = self._read(path, sink)
        return sink.getvalue(), meta.e_tag or ""

    def get_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        answer = self._part(path, start, length, None)
        return b"" if answer is None else answer[0]

    def download(self, path: str, local: Path) -> ObjectMeta:
        with local.open("wb") as file:
            return self._read(path, file)

    def _read(self, path: str, sink: IO[bytes]) -> ObjectMeta:
        """Copies the object into ``sink`` part by part, all of one version: a change in between starts it again."""
        while True:
            first = self._part(path, 0, _PART_BYTES, None)
            if first is None:
                return self._require(path)  # it is empty
            sink.write(first[0])
            meta = first[1]
            try:
                for start in range(_PART_BYTES, meta.size_bytes, _PART_BYTES):
                    part = self._part(path, start, _PART_BYTES, meta.e_tag)
                    sink.write(part[0] if part else b"")
            except ConflictError:
                sink.seek(0)
                sink.truncate()
                continue
            return meta

    def _part(self, path: str, start: int, length: int, tag: str | None) -> tuple[bytes, ObjectMeta] | None:
        """Some bytes of the version ``tag`` (None: any); None when the object ends before ``start``."""

        def read() -> tuple[bytes, ObjectMeta] | None:
            options: GetOptions = {"range": (start, start + length)}
            if tag is not None and self._place.scheme == "gs":
                options["version"] = tag
            elif tag is not None:
                options["if_match"] = tag
            answer = obstore.get(self._client, self._key(path), options=options)
            data, meta = answer.bytes().to_bytes(), self._meta(path, answer.meta)
            wanted = min(length, meta.size_bytes - start)
            if len(data) != wanted:
                # Servers and proxies do that: the answer is whole as HTTP and not as what was asked for.
                raise exceptions.GenericError(f"{len(data)} bytes of {wanted} came")
            return data, meta

        try:
            return self._retried(path, read)
        except _BeyondEnd:
            return None

    def head(self, path: str) -> ObjectMeta | None:
        try:
            return self._retried(path, lambda: self._meta(path, obstore.head(self._client, self._key(path))))
        except NotFoundError:
            return None

    def _require(self, path: str) -> ObjectMeta:
        meta = self.head(path)
        if meta is None:
            raise NotFoundError(f"{self.join(path)} does not exist")
        return meta

    def put(self, path: str, data: bytes | memoryview) -> ObjectMeta:
        tag = self._retried(path, lambda: self._write(path, data, "overwrite"))
        return ObjectMeta(path, len(data), tag, datetime.now(UTC))

    def upload(self, path: str, local: Path) -> ObjectMeta:
        size = local.stat().st_size
        tag = self._retried(path, lambda: self._write(path, local, "overwrite", multipart=size > _PART_BYTES))
        return ObjectMeta(path, size, tag, datetime.now(UTC))

    def put_if_absent(self, path: str, data: bytes | memoryview) -> bool:
        repeated = _Repeated()
        try:
            self._retried(path, lambda: self._write(path, data, "create"), repeated)
        except ConflictError:
            return bool(repeated) and self.get(path) == data
        return True

    def put_if_match(self, path: str, data: bytes | memoryview, e_tag: str | None) -> str:
        mode: PutMode = "create"
        if e_tag is not None:
            mode = {"version": e_tag} if self._place.scheme == "gs" else {"e_tag": e_tag}
        repeated = _Repeated()
        try:
            return self._retried(path, lambda: self._write(path, data, mode), repeated)
        except (ConflictError, NotFoundError) as error:
            if repeated and self.exists(path):
                found, tag = self.get_with_tag(path)
                if found == data:
                    return tag
            expected = "absent" if e_tag is None else f"version {e_tag}"
            raise ConflictError(f"{self.join(path)} is not {expected}: somebody else wrote it") from error

    def _write(self, path: str, data: bytes | memoryview | Path, mode: "PutMode", multipart: bool = False) -> str:
        answer = obstore.put(
            self._client,
            self._key(path),
            data.cast("B") if isinstance(data, memoryview) else data,  # obstore refuses Arrow's signed bytes
            mode=mode,
            use_multipart=multipart,
            chunk_size=_PART_BYTES,
            max_concurrency=_PARALLEL_PARTS,
        )
        return (answer["version"] if self._place.scheme == "gs" else answer["e_tag"]) or ""

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        below = self._key(prefix) if prefix else self._place.path
        after: str | None = None
        while True:
            page = self._retried(prefix, partial(self._page, below, after))
            for raw in page:
                yield self._meta(raw["path"][len(self._place.path) :].lstrip("/"), raw)
            if len(page) < _PAGE:
                return
            after = page[-1]["path"]

    def _page(self, below: str, after: str | None) -> "Sequence[RawMeta]":
        stream = obstore.list(self._client, below or None, offset=after, chunk_size=_PAGE)
        return list(itertools.islice((raw for chunk in stream for raw in chunk), _PAGE))

    def delete(self, path: str) -> None:
        try:
            self._retried(path, lambda: obstore.delete(self._client, self._key(path)))
        except NotFoundError:
            pass  # GCS and Azure say so

    def check_writable(self) -> None:
        # Who waits for this is at the start of a job, and perhaps mistyped the endpoint.
        patience_s = min(self._deadline_s, _FIRST_CONTACT_S)
        super(RemoteStore, RemoteStore(self._place, patience_s)).check_writable()

    def _key(self, path: str) -> str:
        return f"{self._place.path}/{checked(path)}".lstrip("/")

    def _meta(self, path: str, raw: "RawMeta") -> ObjectMeta:
        tag = raw["version"] if self._place.scheme == "gs" else raw["e_tag"]
        return ObjectMeta(path, raw["size"], tag, raw["last_modified"])

    def _retried(self, path: str, attempt: Callable[[], T], repeated: "_Repeated | None" = None) -> T:
        """Runs ``attempt`` until it is answered, or refused, or the deadline has passed."""
        where = self.join(path) if path else self.uri
        deadline = time.monotonic() + self._deadline_s
        pause_s = _FIRST_PAUSE_S
        for tries in itertools.count(1):
            try:
                result = attempt()
                self._reached = True
                return result
            except (exceptions.BaseError, FileNotFoundError, TimeoutError) as error:
                failure = explain(where, error)
                self._raise_final(failure, error)
                if repeated is not None and failure.answer is Answer.LOST:
                    repeated.happened = True
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if time.monotonic() + wait_s > deadline:
                    raise failure.error or StorageError(
                        f"{where}: no success in {self._deadline_s:g} s ({tries} tries); last seen: {failure.seen}. "
                        "Check the endpoint, the network and the server, or raise storage.deadline_s"
                    ) from error
            _log.warning("%s: %s; trying again in %.1f s", where, failure.seen, wait_s)
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise AssertionError("itertools.count ended")

    def _raise_final(self, failure: Failure, error: Exception) -> None:
        """Raises what asking again cannot mend."""
        if failure.answer is Answer.BEYOND_END:
            raise _BeyondEnd(failure.seen) from error
        # An instance that gave credentials before will give them again.
        if failure.error is not None and not (failure.answer is Answer.NO_CREDENTIALS and self._reached):
            raise failure.error from error


_PAGE = 1000


class _Repeated:
    """Whether a request was sent again after its answer had been lost."""

    happened = False

    def __bool__(self) -> bool:
        return self.happened


class _BeyondEnd(StorageError):
    """A range starts where the object has ended."""


def _connect(place: Location, deadline_s: float) -> Client:
    options: Any = object_store_options(place)
    client: Any = {"timeout": timedelta(seconds=min(_REQUEST_S, deadline_s)), "allow_http": True}
    retry: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=deadline_s)}
    try:
        if place.scheme == "s3":
            return S3Store(place.bucket, config=options, client_options=client, retry_config=retry)
        if place.scheme == "gs":
            return GCSStore(place.bucket, client_options=client, retry_config=retry)
        url = f"{place.scheme}://{place.bucket}"
        return AzureStore.from_url(url, config=options, client_options=client, retry_config=retry)
    except (exceptions.BaseError, ValueError) as error:
        raise ConfigError(f"storage {str(place)!r} cannot be opened: {explain(str(place), error).seen}") from error
