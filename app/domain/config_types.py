"""Types of configuration values, each with its check."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _not_bool(value: object) -> object:
    """`true` is 1 to Python, but nobody means that."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _device(value: object) -> object:
    index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not index and not (isinstance(value, str) and value):
        raise ValueError("must be an index, 0 or more, or a UUID")
    return value


def either(message: str) -> WrapValidator:
    """For a value of one of several types: one message at its place, instead of one for each of the types."""

    def check(value: object, types: ValidatorFunctionWrapHandler) -> Any:
        try:
            return types(value)
        except ValidationError:
            raise PydanticCustomError("either", "{message}", {"message": message}) from None

    return WrapValidator(check)


def _without_nul(text: str) -> str:
    """The system takes no NUL in a path, an argument or a variable."""
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_not_bool)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Size = Annotated[int, Field(ge=0), BeforeValidator(_not_bool)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_not_bool)]
Slots = Annotated[int, Field(ge=1, le=256), BeforeValidator(_not_bool)]
Device = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)], BeforeValidator(_device)
]


class Heartbeats(str, Enum):
    """`stream_heartbeats`: what a stream gets while it waits."""

    COMMENTS = "comments"
    """Lines that event streams ignore, and that say to people what is waited for."""
    BLANK = "blank"
    """Empty lines, for clients that take a comment for something else."""
    OFF = "off"
    """Nothing, not even the head, before the answer."""
