"""What several of these modules use."""

from collections.abc import Iterator

import pytest

from tests.support import faults_http
from tests.support.faults_http import FaultyProxy
from tests.support.s3 import S3Server


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before the S3 server, at the address that storage is told."""
    with faults_http.before(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
