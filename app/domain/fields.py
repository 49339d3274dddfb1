"""Types of configuration values, each with its check."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

OWNED_FLAGS = {
    "--host": "the router listens for clients; llama-server stays on loopback",
    "--port": "set system.first_port",
    "-a": "the key under 'models' is the alias",
    "--alias": "the key under 'models' is the alias",
    "--api-key": "the router makes one for each start",
    "--api-key-file": "the router makes a key for each start",
    "-m": "set model_path",
    "--model": "set model_path",
    "-c": "set params.n_ctx",
    "--ctx-size": "set params.n_ctx",
    "-np": "set parallel_requests",
    "--parallel": "set parallel_requests",
}


OWNED_VARIABLES = {"LLAMA_API_KEY": "the router makes one for each start"}


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


def _without_nul(text: str) -> str:
    """The system takes no NUL in a path, an argument or a variable."""
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def not_owned_flag(arg: str) -> str:
    """llama-server takes `--ctx_size` and `--ctx-size` for the same."""
    flag = arg.partition("=")[0]
    if flag.startswith("--"):
        flag = flag.replace("_", "-")
    if flag in OWNED_FLAGS:
        raise ValueError(f"{flag} belongs to the router: {OWNED_FLAGS[flag]}")
    return arg


def not_owned_variable(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("is no name of an environment variable")
    if name in OWNED_VARIABLES:
        raise ValueError(f"{name} belongs to the router: {OWNED_VARIABLES[name]}")
    return name


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
