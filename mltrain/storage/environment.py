"""Credentials and endpoints: read from the environment here, and told to obstore, deltalake and Spark alike.

What the environment does not say, each engine asks of the instance it runs on.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrain.config.uri import Location, azure_account, parse


@dataclass(frozen=True)
class S3Settings:
    """The AWS_* variables. An endpoint means a compatible server: path style, and plain http if it says so."""

    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None
    region: str | None
    endpoint: str | None

    @property
    def plain_http(self) -> bool:
        return self.endpoint is not None and self.endpoint.startswith("http://")


def s3_settings() -> S3Settings:
    """Reads the AWS_* variables as the AWS tools do; the region of a compatible server defaults to us-east-1."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    return S3Settings(
        access_key_id=os.environ.get("AWS_ACCESS_KEY_ID") or None,
        secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY") or None,
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        region=region or ("us-east-1" if endpoint else None),
        endpoint=endpoint.rstrip("/") if endpoint else None,
    )


def object_store_options(place: Location) -> dict[str, Any]:
    """Settings of an obstore store for ``place``; credentials it reads from the same variables itself.

    Raises:
        ConfigError: the account of an ``az://`` URI is not in the environment.
    """
    if place.scheme == "az":
        return {"account_name": azure_account(str(place))}
    if place.scheme != "s3":
        return {}
    settings = s3_settings()
    options: dict[str, Any] = {"virtual_hosted_style_request": settings.endpoint is None}
    if settings.endpoint:
        options["endpoint"] = settings.endpoint
    if settings.region:
        options["region"] = settings.region
    return options


def delta_options(uri: str | Path) -> dict[str, str]:
    """``storage_options`` for deltalake; credentials it reads from the same variables itself."""
    if parse(uri).scheme != "s3":
        return {}
    settings = s3_settings()
    # Two writers of one commit: the conditional put decides, no lock table is needed.
    options = {"conditional_put": "etag"}
    if settings.endpoint:
        options |= {
            "AWS_ENDPOINT_URL": settings.endpoint,
            "AWS_ALLOW_HTTP": str(settings.plain_http).lower(),
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }
    if settings.region:
        options["AWS_REGION"] = settings.region
    return options


def spark_options(uri: str | Path) -> dict[str, str]:
    """Spark settings for ``uri``. They hold credentials if the environment does: executors have none of their own."""
    place = parse(uri)
    if place.scheme == "s3":
        return _s3a_options(s3_settings())
    if place.scheme in ("az", "abfss"):
        return _azure_options(place)
    if place.scheme == "gs" and (key_file := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")):
        return {
            "spark.hadoop.google.cloud.auth.service.account.enable": "true",
            "spark.hadoop.google.cloud.auth.service.account.json.keyfile": key_file,
        }
    return {}


def _s3a_options(settings: S3Settings) -> dict[str, str]:
    options = {
        "endpoint": settings.endpoint,
        "endpoint.region": settings.region,
        "access.key": settings.access_key_id,
        "secret.key": settings.secret_access_key,
        "session.token": settings.session_token,
        "path.style.access": "true" if settings.endpoint else None,
        "connection.ssl.enabled": "false" if settings.plain_http else None,
    }
    return {f"spark.hadoop.fs.s3a.{key}": value for key, value in options.items() if value}


def _azure_options(place: Location) -> dict[str, str]:
    host = place.bucket.partition("@")[2] or f"{azure_account(str(place))}.dfs.core.windows.net"
    key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
    return {f"spark.hadoop.fs.azure.account.key.{host}": key} if key else {}
