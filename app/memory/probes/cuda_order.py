"""Which devices CUDA shows to a program, in its own order. As a program it asks the driver.

CUDA puts the fastest device first, and only the driver knows which that is. It is asked in a process of its
own: it may hang, and what it sets up stays as long as the process.

Source: NVIDIA's CUDA driver API, `cuInit`, `cuDeviceGetCount`, `cuDeviceGetUuid`.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import uuid

LIBRARY = "libcuda.so.1"
ASK_TIMEOUT_S = 10.0


def shown_by_cuda() -> list[str] | None:
    """Their UUIDs; None where the driver does not tell. Blocking."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_TIMEOUT_S,
            encoding="ascii",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split() if done.returncode == 0 else None


def _ask() -> list[str]:
    """Raises `OSError`."""
    cuda = ctypes.CDLL(LIBRARY)
    count = ctypes.c_int()
    _check(cuda.cuInit(0))
    _check(cuda.cuDeviceGetCount(ctypes.byref(count)))
    found = []
    for number in range(count.value):
        raw = (ctypes.c_ubyte * 16)()
        _check(cuda.cuDeviceGetUuid(raw, number))
        found.append(f"GPU-{uuid.UUID(bytes=bytes(raw))}")
    return found


def _check(code: int) -> None:
    if code:
        raise OSError(f"the CUDA driver answers with error {code}")


if __name__ == "__main__":
    try:
        print(*_ask())
    except (OSError, AttributeError) as error:
        sys.exit(str(error))
