"""How places are spelled, and what each engine is told about them."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from obstore.store import AzureStore, GCSStore, S3Store

from mltrain.errors import ConfigError, NotFoundError, StorageAccessError, StorageError
from mltrain.storage import delta_options, normalise, open_store, spark_options, spark_uri
from mltrain.storage.answers import Answer, explain
from mltrain.storage.remote import RemoteStore


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"),
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GOOGLE_APPLICATION_CREDENTIALS"),
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3a://bucket/a", "s3://bucket/a"),
        ("S3A://bucket//a//b", "s3://bucket/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("az://container/a/", "az://container/a"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net/a"),
        ("file:///data/ml/", "/data/ml"),
        ("/data/../data/ml/", "/data/ml"),
        (Path("/data/ml"), "/data/ml"),
    ],
)
def test_a_place_has_one_spelling(given: str | Path, wanted: str) -> None:
    assert normalise(given) == wanted
    assert normalise(normalise(given)) == wanted


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise("out") == str(tmp_path / "out")
    assert spark_uri("./out/") == f"file://{tmp_path}/out"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://key:secret@bucket/a", "credentials"),
        ("s3://key@bucket/a", "credentials"),
        ("gs://user:secret@bucket", "credentials"),
        ("abfss://container:secret@account.dfs.core.windows.net", "credentials"),
        ("az://container/a?sig=secret", "credentials"),
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("abfss://container/a", "CONTAINER@ACCOUNT"),
        ("https://bucket.s3.amazonaws.com/a", "'https' is not supported"),
        ("hdfs://namenode/a", "'hdfs' is not supported"),
        ("file://relative/path", "absolute path"),
        ("s3://bucket/a/../b", "mean nothing"),
        ("", "is empty"),
    ],
)
def test_other_places_are_refused_without_repeating_secrets(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(given)
    assert "secret" not in str(caught.value)


def test_opening_does_no_io(tmp_path: Path) -> None:
    open_store(tmp_path / "root")
    open_store("s3://nowhere/at/all")
    assert not (tmp_path / "root").exists()


def test_an_endpoint_means_path_style_and_plain_http_for_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    store = open_store("s3://bucket/a")
    assert isinstance(store, RemoteStore)
    assert isinstance(store._client, S3Store)
    assert store._client.config["endpoint"] == "http://minio:9000"
    assert str(store._client.config["virtual_hosted_style_request"]) == "false"
    assert delta_options("s3://bucket/a") == {
        "conditional_put": "etag",
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AWS_REGION": "us-east-1",
    }
    assert spark_options("s3a://bucket/a") == {
        "spark.hadoop.fs.s3a.endpoint": "http://minio:9000",
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.access.key": "me",
        "spark.hadoop.fs.s3a.secret.key": "hidden",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
    }


def test_without_an_endpoint_it_is_aws_in_the_region_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert delta_options("s3://bucket") == {"conditional_put": "etag", "AWS_REGION": "eu-west-1"}
    assert spark_options("s3://bucket") == {"spark.hadoop.fs.s3a.endpoint.region": "eu-west-1"}
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert delta_options("s3://bucket")["AWS_REGION"] == "eu-central-1"
    store = open_store("s3://bucket")
    assert isinstance(store, RemoteStore)
    assert isinstance(store._client, S3Store)
    assert store._client.config["region"] == "eu-central-1"


def test_options_hold_no_credentials_for_deltalake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    assert "hidden" not in str(delta_options("s3://bucket"))


def test_local_places_need_no_options(tmp_path: Path) -> None:
    assert delta_options(tmp_path) == {}
    assert spark_options(tmp_path) == {}
    write_deltalake(str(tmp_path / "t"), pa.table({"a": [1]}), storage_options=delta_options(tmp_path) or None)
    assert DeltaTable(str(tmp_path / "t")).version() == 0


def test_google_storage_opens_and_tells_spark_the_key_file(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("gs://bucket/a")
    assert isinstance(store, RemoteStore)
    assert isinstance(store._client, GCSStore)
    assert store.join("b") == "gs://bucket/a/b"
    assert spark_options("gs://bucket") == {}
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/keys/ml.json")
    assert (
        spark_options("gs://bucket")["spark.hadoop.google.cloud.auth.service.account.json.keyfile"] == "/keys/ml.json"
    )
    assert spark_uri("gs://bucket/a") == "gs://bucket/a"


def test_azure_opens_by_container_or_by_account(monkeypatch: pytest.MonkeyPatch) -> None:
    full = "abfss://container@account.dfs.core.windows.net/a"
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        spark_uri("az://container/a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aGlkZGVu")
    for uri in (full, "az://container/a"):
        store = open_store(uri)
        assert isinstance(store, RemoteStore)
        assert isinstance(store._client, AzureStore)
        assert store._client.config["account_name"] == "account"
        assert store._client.config["container_name"] == "container"
        assert spark_uri(uri) == full
        assert spark_options(uri) == {
            "spark.hadoop.fs.azure.account.key.account.dfs.core.windows.net": "aGlkZGVu",
        }
    assert delta_options(full) == {}


def test_azure_without_an_account_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"az://container.*(?i:account)"):
        open_store("az://container")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageAccessError, match="file"):
        open_store(tmp_path / "file").check_writable()
    with pytest.raises(StorageAccessError, match="file"):
        open_store(tmp_path / "file" / "below").check_writable()


def test_a_root_that_must_not_be_written_is_refused() -> None:
    with pytest.raises(StorageAccessError, match="choose another root"):
        open_store("/proc/mltrain").check_writable()


def test_an_object_that_is_a_folder_cannot_be_written_over(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("a/b", b"1")
    with pytest.raises((StorageError, NotFoundError)):
        store.put("a", b"1")


def test_names_of_our_own_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="taken"):
        open_store(tmp_path).put("a/.mltrain-x", b"1")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error", Answer.NO_CREDENTIALS),
        ("Server returned non-2xx status code: 409 Conflict: ", Answer.BUSY),
        ("Server returned non-2xx status code: 429 Too Many Requests: ", Answer.BUSY),
        ("Server returned non-2xx status code: 500 Internal Server Error: ", Answer.LOST),
        ("HTTP error: error sending request", Answer.LOST),
        ("HTTP error: request or response body error", Answer.LOST),
        (
            "Server returned non-2xx status code: 400 Bad Request: <Code>AuthorizationHeaderMalformed</Code>",
            Answer.FINAL,
        ),
        ("Received redirect without LOCATION: status code: 301 Moved Permanently", Answer.FINAL),
    ],
)
def test_an_answer_says_whether_to_ask_again(text: str, answer: Answer) -> None:
    assert explain("s3://bucket/a", Exception(text)).answer is answer


def test_what_was_seen_holds_no_query() -> None:
    seen = explain("az://c/a", Exception("error for url https://account/c/a?sig=hidden: sending failed")).seen
    assert "hidden" not in seen
    assert "sending failed" in seen
