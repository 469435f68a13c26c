"""The error tree. A message names the thing, the value found, the value wanted and the next command to run."""

from typing import Any


class MltrainError(Exception):
    """Root of every error that mltrain raises on purpose.

    Attributes:
        exit_code: what a command ends with when this error reaches it.
    """

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions rebuild from ``args`` by default, which loses attributes set by a subclass's __init__.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[MltrainError], args: tuple[Any, ...], state: dict[str, Any]) -> MltrainError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class RequestError(MltrainError):
    """The request was wrong: nothing was started, and trying again unchanged cannot help."""

    exit_code = 2


class ConfigError(RequestError):
    """A config file or an override is wrong."""


class TableError(RequestError):
    """A table cannot become the dataset that was asked for."""


class NotFoundError(RequestError):
    """A dataset, run, object or file that was named does not exist."""


class MissingDependencyError(RequestError):
    """An extra or a program that this command needs is not installed."""


class DamagedError(MltrainError):
    """Stored data does not match its checksum, length or format."""


class StorageError(MltrainError):
    """Object storage failed for longer than the deadline, or refused."""


class StorageAccessError(StorageError, RequestError):
    """Storage cannot be reached or refuses us: wrong endpoint, bucket, credentials or permissions."""

    exit_code = 2


class ConflictError(StorageError):
    """An object is not the version that a conditional write expected: somebody else wrote it."""


class BuildError(MltrainError):
    """A dataset build did not produce what its source holds."""


class TrainingError(MltrainError):
    """A training failed: user code raised, the loss is not finite, or every attempt was used up."""


class CollectiveAborted(MltrainError):
    """A collective operation or a rendezvous was aborted, or a peer was lost. The generation is over."""


class StoppedError(MltrainError):
    """Stopped before it was done, on request or for want of workers; it can go on.

    Attributes:
        resume_command: the command that goes on from here.
    """

    exit_code = 75

    def __init__(self, message: str, resume_command: str) -> None:
        super().__init__(message)
        self.resume_command = resume_command
