"""What a failed request to an object store means: who has to act, and whether asking again can help."""

import enum
import re
from dataclasses import dataclass

from obstore import exceptions

from mltrain.errors import ConflictError, MltrainError, NotFoundError, StorageAccessError


class Answer(enum.Enum):
    """What came of a request."""

    LOST = "lost"  # no usable answer: it may have been carried out
    BUSY = "busy"  # refused for now: it was not carried out
    NO_CREDENTIALS = "no credentials"  # the instance, asked for them, gave none: it was not sent
    BEYOND_END = "beyond end"
    FINAL = "final"


@dataclass(frozen=True)
class Failure:
    """A request that failed.

    Attributes:
        error: what to raise in the end; None where nothing better can be said than that it did not work.
        seen: one line about what was seen.
    """

    answer: Answer
    seen: str
    error: MltrainError | None = None


_STATUS = re.compile(r"status code: (\d{3})(?: ([A-Za-z ]+))?")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_CREDENTIAL_SOURCES = ("169.254.169.254", "169.254.170.2", "/latest/api/token", "/latest/meta-data", "metadata.google")
# Said of an object or, by HEAD, of nothing at all; any other 404 is about the bucket or the account.
_NO_OBJECT = frozenset({"NoSuchKey", "BlobNotFound", None})
_BUSY = frozenset({409, 429})

_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_*, AZURE_*), or run where the instance has a role"
)


def explain(where: str, error: Exception) -> Failure:
    """Reads an error of obstore about the object or place ``where``."""
    text = str(error).partition("\n\nDebug source")[0]
    status = int(match[1]) if (match := _STATUS.search(text)) else None
    code = match[1] if (match := _CODE.search(text)) else None
    seen = _seen(text, code)
    if any(source in text for source in _CREDENTIAL_SOURCES):
        message = f"{where}: the environment holds no credentials, and the instance gave none ({seen}); {_CREDENTIALS}"
        return Failure(Answer.NO_CREDENTIALS, seen, StorageAccessError(message))
    if status in _BUSY:
        return Failure(Answer.BUSY, seen)
    if isinstance(error, FileNotFoundError) or status == 404:
        if code in _NO_OBJECT:
            return Failure(Answer.FINAL, seen, NotFoundError(f"{where} does not exist"))
        return _refused(f"{where}: {seen}; check the bucket's name, the endpoint and the credentials", seen)
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return Failure(Answer.FINAL, seen, ConflictError(f"{where} is another version: {seen}"))
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return _refused(f"{where}: access denied ({seen}); check the credentials and what they may do there", seen)
    if status == 416:
        return Failure(Answer.BEYOND_END, seen)
    if status is not None and status < 500 and status != 408:
        return _refused(f"{where}: refused ({seen}); check the endpoint, the region and the bucket's name", seen)
    return Failure(Answer.LOST, seen)


def _refused(message: str, seen: str) -> Failure:
    return Failure(Answer.FINAL, seen, StorageAccessError(message))


def _seen(text: str, code: str | None) -> str:
    """The status, code and message of an answer, or the start of what was said, without the query of any URL."""
    if status := _STATUS.search(text):
        message = _MESSAGE.search(text)
        return " ".join(
            part for part in (status[1], code or (status[2] or "").strip(), message[1] if message else "") if part
        )
    return re.sub(r"\?\S+", "", " ".join(text.split()))[:300]
