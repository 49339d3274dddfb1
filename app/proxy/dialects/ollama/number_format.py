"""Times and numbers as Ollama writes them. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

NS = 1_000_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LONGEST_NS = 2**63 - 1
"""Go's longest duration, 292 years: how long something stays that stays for ever."""


def timestamp(unix_ns: int) -> str:
    """As RFC 3339 has it, in UTC."""
    seconds, rest = divmod(unix_ns, NS)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def never(unix_ns: int) -> str:
    return timestamp(unix_ns + _LONGEST_NS)


def duration_ns(seconds: float) -> int:
    """Never 0: that would be left out."""
    return max(1, round(seconds * NS))


def parameter_size(count: int) -> str:
    """`134.52M`, `8B`."""
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if count >= size:
            return f"{count / size:.{0 if count % size == 0 else digits}f}{unit}"
    return str(count)


_SIZES = {"Small": "_S", "Medium": "_M", "Large": "_L"}


def quantization(file_type: str | None) -> str:
    """`Q4_K_M`, of llama-server's `Q4_K - Medium`."""
    if file_type is None:
        return "unknown"
    name, _, rest = file_type.removeprefix("all ").partition(" - ")
    kind, _, more = name.partition(" ")
    if more == "mix":  # IQ3_S mix
        return f"{kind.rpartition('_')[0]}_M"
    return kind + _SIZES.get(rest, "")
