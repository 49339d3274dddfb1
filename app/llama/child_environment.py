"""What of the router's environment a llama-server gets: what it needs to run, and nothing else. Pure.

A list of what is secret is never complete (`DATABASE_URL`, `*_PAT`, `npm_config__authToken`); this one of
what is needed grows by `models.X.env`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMES = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "PWD",
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "USERNAME", "APPDATA",
    "LOCALAPPDATA", "PROGRAMDATA", "PROGRAMFILES", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE",
    "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_DATA_DIRS", "ONEAPI_ROOT", "NO_COLOR",
})  # fmt: skip
"""Where things are, and whose."""

_KINDS = (
    "LC_", "LD_", "DYLD_",
    "CUDA_", "CUDART_", "CUBLAS", "NVIDIA_", "NCCL_", "GGML_", "GPU_",
    "HIP_", "HSA_", "ROCR_", "ROCM_", "ROCBLAS_", "HIPBLASLT_", "AMD_", "AMDGPU_", "RADV_",
    "VK_", "VULKAN_", "MESA_", "LIBGL_", "GALLIUM_", "LP_", "DRI_", "__GL_", "__NV_",
    "SYCL_", "ONEAPI_", "ZE_", "ZES_", "UR_", "INTEL_", "MUSA_", "ASCEND_", "CANN_", "METAL_", "MTL_",
    "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_",
    "MALLOC_", "GLIBC_", "MIMALLOC_", "JEMALLOC_", "NUMA_", "ASAN_", "UBSAN_", "TSAN_", "LSAN_",
)  # fmt: skip
"""How names begin that drivers, number libraries, allocators and the dynamic linker read."""

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH)", re.I)
"""Not even among those."""


def passed_on(base: Mapping[str, str]) -> dict[str, str]:
    """`LLAMA_ARG_*`, which would be options, and `ROUTER_*`, which hold keys, are not among them."""
    return {name: value for name, value in base.items() if _is_needed(name.upper())}


def _is_needed(name: str) -> bool:
    return name in _NAMES or (name.startswith(_KINDS) and not _SECRET.search(name))
