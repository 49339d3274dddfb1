"""Flags and variables of llama-server that are not the user's: with them the router could not run it.

`extra_args` and `env` of a model may hold everything else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Owned:
    """`variable` is the same option in the environment."""

    flags: tuple[str, ...]
    variable: str | None
    reason: str


_KEY = "the router makes one for each start"
_FILE = "set model_path: the router downloads nothing"
_ENTRIES = "every model is an entry of its own under 'models'"
_ENDS = "llama-server prints something and ends instead of serving"
_TLS = "the router speaks plain HTTP to it, on loopback; for TLS put a proxy in front of the router"
_PRESETS = (
    "--embd-bge-small-en-default",
    "--embd-e5-small-en-default",
    "--embd-gemma-default",
    "--embd-gte-small-default",
    "--fim-qwen-1.5b-default",
    "--fim-qwen-3b-default",
    "--fim-qwen-7b-default",
    "--fim-qwen-7b-spec",
    "--fim-qwen-14b-spec",
    "--fim-qwen-30b-default",
    "--gpt-oss-20b-default",
    "--gpt-oss-120b-default",
    "--vision-gemma-4b-default",
    "--vision-gemma-12b-default",
)

OWNED = (
    Owned(("--host",), "LLAMA_ARG_HOST", "the router listens for clients; llama-server stays on loopback"),
    Owned(("--port",), "LLAMA_ARG_PORT", "set system.first_port"),
    Owned(("--reuse-port",), "LLAMA_ARG_REUSE_PORT", "another program could answer on the same port"),
    Owned(("--api-prefix",), "LLAMA_ARG_API_PREFIX", "it asks for llama-server's paths without a prefix"),
    Owned(("--ssl-key-file",), "LLAMA_ARG_SSL_KEY_FILE", _TLS),
    Owned(("--ssl-cert-file",), "LLAMA_ARG_SSL_CERT_FILE", _TLS),
    Owned(("-a", "--alias"), "LLAMA_ARG_ALIAS", "the key under 'models' is the alias"),
    Owned(("--api-key",), "LLAMA_API_KEY", _KEY),
    Owned(("--api-key-file",), "LLAMA_ARG_API_KEY_FILE", _KEY),
    Owned(("-m", "--model"), "LLAMA_ARG_MODEL", "set model_path"),
    Owned(("-mu", "--model-url"), "LLAMA_ARG_MODEL_URL", _FILE),
    Owned(("-dr", "--docker-repo"), "LLAMA_ARG_DOCKER_REPO", _FILE),
    Owned(("-hf", "-hfr", "--hf-repo"), "LLAMA_ARG_HF_REPO", _FILE),
    Owned(("-hff", "--hf-file"), "LLAMA_ARG_HF_FILE", _FILE),
    Owned(("-hfv", "-hfrv", "--hf-repo-v"), "LLAMA_ARG_HF_REPO_V", _FILE),
    Owned(("-hffv", "--hf-file-v"), "LLAMA_ARG_HF_FILE_V", _FILE),
    Owned(
        ("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"),
        "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
        "name the draft model's file with --model-draft: the router downloads nothing",
    ),
    Owned(("-mmu", "--mmproj-url"), "LLAMA_ARG_MMPROJ_URL", "set params.mmproj to the projector's file"),
    Owned(_PRESETS, None, _FILE),
    Owned(("--models-dir",), "LLAMA_ARG_MODELS_DIR", _ENTRIES),
    Owned(("--models-preset",), "LLAMA_ARG_MODELS_PRESET", _ENTRIES),
    Owned(("--models-max",), "LLAMA_ARG_MODELS_MAX", "set system.max_concurrent_models"),
    Owned(("--models-autoload", "--no-models-autoload"), "LLAMA_ARG_MODELS_AUTOLOAD", _ENTRIES),
    Owned(("-c", "--ctx-size"), "LLAMA_ARG_CTX_SIZE", "set params.n_ctx"),
    Owned(("-np", "--parallel"), "LLAMA_ARG_N_PARALLEL", "set parallel_requests"),
    Owned(("--embedding", "--embeddings"), "LLAMA_ARG_EMBEDDINGS", "set params.embedding"),
    Owned(("--rerank", "--reranking"), "LLAMA_ARG_RERANKING", "set params.rerank"),
    Owned(("--log-disable",), None, "the router reads in the log how a load goes, and why one failed"),
    Owned(("-h", "--help", "--usage", "--version", "--license", "--completion-bash"), None, _ENDS),
    Owned(("-cl", "--cache-list", "--list-devices"), None, _ENDS),
)

OWNED_FLAGS = {flag: owned.reason for owned in OWNED for flag in owned.flags}
OWNED_VARIABLES = {owned.variable: owned.reason for owned in OWNED if owned.variable is not None}


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
