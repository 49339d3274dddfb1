"""Every flag and variable with which the router starts a llama-server, and what it does to answers.

A command line is made of these and of `extra_args`; what is not here cannot be written. docs/llama-server.md
shows them to users: after a change run `python -m tools.flag_reference`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """`names` are its spellings in llama-server's builds, the first one that a binary knows is used."""

    names: tuple[str, ...]
    value: str
    """In words, as the documentation has it."""

    setting: str
    """The key of the configuration that decides it; empty: the router alone."""

    effect: str
    """Why it cannot change an answer, or what it changes."""

    variable: str = ""
    """In a model's `env` it is the user's word, which the flag would overrule: then the flag is left out."""


_LOG = "only what llama-server logs"

ADDRESS = Flag(("--host",), "`127.0.0.1`", "", "none: clients reach it through the router only")
PORT = Flag(("--port",), "a free one", "system.first_port", "none")
ALIAS = Flag(("--alias", "-a"), "the model's key", "models.{alias}", "answers name the alias, not the file")
HTTP_THREADS = Flag(
    ("--threads-http",), "slots + 8", "", "none: how many connections it reads from", "LLAMA_ARG_THREADS_HTTP"
)
SSE_PING = Flag(
    ("--sse-ping-interval",),
    "5",
    "",
    "none: a silent stream gets a comment every 5 s instead of 30",
    "LLAMA_ARG_SSE_PING_INTERVAL",
)
VERBOSITY = Flag(("-lv", "--verbosity", "--log-verbosity"), "4", "", f"none: {_LOG}, memory figures included")
LOG_COLORS = Flag(("--log-colors",), "`off`", "", f"none: {_LOG}", "LLAMA_ARG_LOG_COLORS")
OFFLINE = Flag(
    ("--offline",), "", "", "none: what would have to be downloaded is an error instead", "LLAMA_ARG_OFFLINE"
)
METRICS = Flag(("--metrics",), "", "", "none: `/metrics?model=X` has an answer", "LLAMA_ARG_ENDPOINT_METRICS")
MODEL = Flag(("-m", "--model"), "the file", "model_path", "the user's choice")
PROJECTOR = Flag(("--mmproj",), "the file", "params.mmproj", "the user's choice")
EMBEDDINGS = Flag(
    ("--embeddings", "--embedding"), "", "params.embedding", "the user's choice, else what the file says"
)
RERANK = Flag(("--rerank", "--reranking"), "", "params.rerank", "the user's choice, else what the file says")
POOLING = Flag(
    ("--pooling",),
    "`mean` for an embedding model whose file names none",
    "params.pooling",
    "`/v1/embeddings` answers where llama-server by hand refuses; what the file says is never overridden",
)
JINJA = Flag(
    ("--jinja",), "", "", "none: the default of today's builds; older ones ignored the file's chat template"
)
CHAT_TEMPLATE = Flag(("--chat-template",), "the text", "params.chat_template", "the user's choice")
CONTEXT = Flag(
    ("-c", "--ctx-size"),
    "`n_ctx` (4096) x slots",
    "params.n_ctx",
    "a longer conversation is refused; by hand the trained context is taken, if it fits",
)
SLOTS = Flag(
    ("-np", "--parallel"),
    "1",
    "parallel_requests",
    "each request has its own context; by hand four share one and can overflow together",
)
BATCH = Flag(
    ("-b", "--batch-size"),
    "as `-ub`, for embedding and reranking models",
    "params.n_batch",
    "see `-ub`",
    "LLAMA_ARG_BATCH",
)
UBATCH = Flag(
    ("-ub", "--ubatch-size"),
    "`n_ctx`, at most 8192, for embedding and reranking models",
    "params.n_ubatch",
    "inputs longer than 512 tokens are answered, by hand they get an error; the others are the same",
    "LLAMA_ARG_UBATCH",
)
THREADS = Flag(
    ("-t", "--threads"),
    "8",
    "system.cpu_threads",
    "on the CPU the last digits of numbers depend on how many threads add them up, by hand too",
    "LLAMA_ARG_THREADS",
)
BATCH_THREADS = Flag(("-tb", "--threads-batch"), "8", "system.cpu_threads", "as `-t`", "LLAMA_ARG_THREADS")
PROMPT_CACHE = Flag(
    ("--cache-ram", "-cram"),
    "1024",
    "system.prompt_cache_mb",
    "how many tokens an answer's `usage` calls cached; by hand it is 8192",
    "LLAMA_ARG_CACHE_RAM",
)
CACHE_TYPE_K = Flag(
    ("-ctk", "--cache-type-k"), "`f16`", "params.type_k", "none: the same by hand", "LLAMA_ARG_CACHE_TYPE_K"
)
CACHE_TYPE_V = Flag(
    ("-ctv", "--cache-type-v"), "`f16`", "params.type_v", "none: the same by hand", "LLAMA_ARG_CACHE_TYPE_V"
)
FLASH_ATTENTION = Flag(
    ("-fa", "--flash-attn"),
    "`on`",
    "system.flash_attention",
    "rounding, where llama-server by hand (`auto`) would find that a device cannot do it",
    "LLAMA_ARG_FLASH_ATTN",
)
GPU_LAYERS = Flag(
    ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "all, or 0 without a GPU",
    "params.n_gpu_layers",
    "rounding: devices add up differently; by hand llama-server chooses what fits",
)
DEVICE = Flag(("--device", "-dev"), "where the model was placed", "gpu_devices", "as `-ngl`")
SPLIT_MODE = Flag(("--split-mode", "-sm"), "`layer`, on several devices", "", "as `-ngl`; the same by hand")
TENSOR_SPLIT = Flag(
    ("--tensor-split", "-ts"), "the room on each of several devices", "gpu_devices", "as `-ngl`"
)
SLOT_FOLDER = Flag(
    ("--slot-save-path",),
    "the folder of kept conversations",
    "keep_cache",
    "how many tokens an answer's `usage` calls cached",
)

FLAGS = (
    ADDRESS,
    PORT,
    ALIAS,
    HTTP_THREADS,
    SSE_PING,
    VERBOSITY,
    LOG_COLORS,
    OFFLINE,
    METRICS,
    MODEL,
    PROJECTOR,
    EMBEDDINGS,
    RERANK,
    POOLING,
    JINJA,
    CHAT_TEMPLATE,
    CONTEXT,
    SLOTS,
    BATCH,
    UBATCH,
    THREADS,
    BATCH_THREADS,
    PROMPT_CACHE,
    CACHE_TYPE_K,
    CACHE_TYPE_V,
    FLASH_ATTENTION,
    GPU_LAYERS,
    DEVICE,
    SPLIT_MODE,
    TENSOR_SPLIT,
    SLOT_FOLDER,
)


@dataclass(frozen=True)
class Variable:
    """Of the environment; removed from it where it has no value."""

    name: str
    value: str
    effect: str


VARIABLES = (
    Variable("LLAMA_API_KEY", "random", "none: the router alone may ask it"),
    Variable("LLAMA_SERVER_ROUTER_PORT", "1", "none: it tells how far a load is, and ends with the router"),
    Variable("GGML_NO_BACKTRACE", "1", "none: a crash is over at once, without a debugger"),
    Variable("CUDA_DEVICE_ORDER", "`PCI_BUS_ID`", "none: devices are numbered as the driver numbers them"),
    Variable("CUDA_VISIBLE_DEVICES", "where the model was placed", "as `-ngl`"),
    Variable(
        "all others, `LLAMA_*` and `ROUTER_*` among them",
        "",
        "none: what the system, drivers and libraries need is passed on, and `env` adds to it",
    ),
)
