"""What every config model is: frozen, without unknown keys, and with an absent key where a file says null."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class KeyedValueError(ValueError):
    """What is wrong at a key below the model that finds it, so that the message has that key's line.

    Attributes:
        keys: from the model down.
    """

    def __init__(self, keys: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.keys = keys


class Strict(BaseModel):
    """Root of the config models. A field is a YAML key, and the string under it is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, given: Any) -> Any:
        # Null unsets a key, so that a file which extends another can take it back; lists are frozen as tuples.
        if not isinstance(given, dict):
            return given
        return {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value is not None
        }


# The name of a dataset, an experiment, a task or a split: part of paths and of metric names.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Column = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NaturalInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NaturalFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
# Of 64 bits as numpy and torch take it.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
