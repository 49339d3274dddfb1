"""The command line and environment of one llama-server: pure, from the flags that this binary knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.domain.model_spec import ALL_LAYERS, ModelSpec
from app.domain.status import ModelKind
from app.domain.views import HOST, Layout
from app.llama import flags
from app.llama.child_environment import passed_on
from app.llama.flags import Flag

MAX_INPUT_BATCH = 8192  # an embedding's whole input is one batch, and compute memory grows with it
SSE_PING_S = 5  # with a stream in flight, SIGTERM is obeyed at the next ping only
SPARE_HTTP_THREADS = 8  # idle connections hold a thread each, and /health must still answer
CHILD_OF_A_ROUTER = "LLAMA_SERVER_ROUTER_PORT"

_ENTRY = re.compile(r"-{1,2}[A-Za-z][\w-]*(?:,\s+-{1,2}[A-Za-z][\w-]*)*")
_FLAG = re.compile(r"-{1,2}[A-Za-z][\w-]*")
_REMOVED = "argument has been removed"
_CUDA_ID = re.compile(r"\d+\Z|(GPU|MIG)-")


class CommandError(Exception):
    """This binary cannot do something that the router cannot do without."""


@dataclass(frozen=True)
class BinaryInfo:
    """A llama-server and what its `--help` offers. `identity` changes when the binary does."""

    path: Path
    version: str
    flags: frozenset[str]
    identity: str
    switches: frozenset[str] = frozenset()  # the flags among them that take no value


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: dict[str, str]


def parse_help(text: str) -> frozenset[str]:
    """Every flag that `--help` lists, all spellings, without those that only say that they were removed."""
    return frozenset(flag for head, _, _ in _entries(text) for flag in _FLAG.findall(head))


def parse_switches(text: str) -> frozenset[str]:
    """The flags that take no value: old builds have `-fa` and `--log-colors` as switches."""
    return frozenset(flag for head, value, _ in _entries(text) if not value for flag in _FLAG.findall(head))


def parse_version(text: str) -> str:
    """What follows `version:`; loaders and GPU libraries print their own lines around it."""
    found = re.search(r"^version:\s*(.+?)\s*$", text, re.M)
    return found.group(1) if found else "unknown"


def batch_sizes(spec: ModelSpec) -> tuple[int | None, int | None]:
    """`-b` and `-ub`, None for llama-server's own default.

    An input longer than `-ub` is a 500 where the whole input is one batch, so there it is the context.
    """
    params = spec.params
    if spec.kind is ModelKind.CHAT or params.n_ubatch is not None:
        return params.n_batch, params.n_ubatch
    whole = min(params.n_ctx, MAX_INPUT_BATCH)
    return max(whole, params.n_batch or 0), whole


def unknown_flags(binary: BinaryInfo, spec: ModelSpec) -> list[str]:
    """Flags in `extra_args` with which this binary would end at once. What follows one may be its value."""
    unknown, value_follows = [], False
    for arg in spec.extra_args:
        flag = arg.partition("=")[0]
        names = {flag, flag.replace("_", "-")}
        if value_follows or not _FLAG.match(arg):
            value_follows = False
            continue
        value_follows = "=" not in arg and bool(names & binary.flags) and not names & binary.switches
        if not names & binary.flags:
            unknown.append(flag)
    return unknown


def build_command(
    binary: BinaryInfo,
    spec: ModelSpec,
    placement: Mapping[str, int],
    port: int,
    api_key: str,
    base_env: Mapping[str, str],
    pooling: str | None = None,
    slot_folder: Path | None = None,
) -> Command:
    """How to run `spec` where `placement` (MB by device) says. Raises `CommandError`.

    `pooling` is the `flag` of `choose_pooling`. The key travels in the environment only: other users of the
    machine can read command lines.
    """
    devices = {} if spec.cpu_only else {d: mb for d, mb in placement.items() if d != HOST}
    line = _Line(binary, spec)
    line.essential("--api-key")
    _address(line, spec, port)
    _model(line, spec, pooling)
    layout = placement if isinstance(placement, Layout) else Layout(placement)
    _size(line, spec, layout)
    _devices(line, spec, devices, layout.layers)
    if slot_folder is not None:
        line.add(flags.SLOT_FOLDER, slot_folder)
    argv = (str(binary.path), *line.args, *spec.extra_args)
    return Command(argv, _environment(spec, devices, api_key, base_env))


def _address(line: _Line, spec: ModelSpec, port: int) -> None:
    line.need(flags.ADDRESS, "127.0.0.1")
    line.need(flags.PORT, port)
    line.add(flags.ALIAS, spec.alias)
    line.add(flags.HTTP_THREADS, spec.slots + SPARE_HTTP_THREADS)
    line.add(flags.SSE_PING, SSE_PING_S)
    line.add(flags.VERBOSITY, 4)  # below 4 no memory line is printed
    line.add(flags.LOG_COLORS, "off")
    line.switch(flags.OFFLINE)
    line.switch(flags.METRICS)


def _model(line: _Line, spec: ModelSpec, pooling: str | None) -> None:
    params = spec.params
    line.need(flags.MODEL, spec.path)
    if params.mmproj:
        line.need(flags.PROJECTOR, params.mmproj)
    if spec.kind is ModelKind.EMBEDDING:
        line.must(flags.EMBEDDINGS)
    if spec.kind is ModelKind.RERANK:
        line.must(flags.RERANK)
    if pooling is not None:
        line.need(flags.POOLING, pooling)
    line.switch(flags.JINJA)  # before the template: without it only the built-in ones are accepted
    if params.chat_template:
        line.need(flags.CHAT_TEMPLATE, params.chat_template)


def _size(line: _Line, spec: ModelSpec, layout: Layout) -> None:
    params = spec.params
    line.need(flags.CONTEXT, params.n_ctx * spec.slots)
    line.need(flags.SLOTS, spec.slots)
    batch, ubatch = batch_sizes(spec)
    if batch is not None:
        line.need(flags.BATCH, batch)
    if ubatch is not None:
        line.need(flags.UBATCH, ubatch)
    line.add(flags.THREADS, spec.cpu_threads)
    line.add(flags.BATCH_THREADS, spec.cpu_threads)
    cache_mb = spec.prompt_cache_mb if layout.cache_mb is None else layout.cache_mb
    line.add(flags.PROMPT_CACHE, cache_mb)
    line.add(flags.CACHE_TYPE_K, params.type_k)
    line.add(flags.CACHE_TYPE_V, params.type_v)
    if line.is_switch(flags.FLASH_ATTENTION):
        if spec.flash_attention == "on":
            line.switch(flags.FLASH_ATTENTION)
    else:
        line.add(flags.FLASH_ATTENTION, spec.flash_attention)


def _devices(line: _Line, spec: ModelSpec, devices: Mapping[str, int], layers: tuple[int, ...]) -> None:
    """A split is told in layers, which llama-server distributes in the proportion of these numbers."""
    if not devices:
        line.need(flags.GPU_LAYERS, 0)
        line.add(flags.DEVICE, "none")
        return
    offloaded = spec.params.n_gpu_layers
    line.need(flags.GPU_LAYERS, 999 if offloaded >= ALL_LAYERS else offloaded)
    if not _are_cuda(devices):
        line.need(flags.DEVICE, ",".join(devices))
    if len(devices) > 1:
        line.need(flags.SPLIT_MODE, "layer")
        shares = layers or tuple(devices.values())
        line.need(flags.TENSOR_SPLIT, ",".join(map(str, shares)))


def _environment(
    spec: ModelSpec, devices: Mapping[str, int], api_key: str, base: Mapping[str, str]
) -> dict[str, str]:
    env = passed_on(base)
    if _are_cuda(devices):
        # NVML counts in PCI bus order, CUDA by default the fastest first.
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    env["GGML_NO_BACKTRACE"] = "1"  # else an assertion starts gdb on a process of many gigabytes
    env["LLAMA_API_KEY"] = api_key
    env[CHILD_OF_A_ROUTER] = "1"  # any number makes it tell its progress and obey stdin
    env.update(spec.env)
    return env


def _are_cuda(devices: Mapping[str, int]) -> bool:
    """Also true of no device at all: then CUDA is shown none."""
    return all(_CUDA_ID.match(d) for d in devices)


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """(flags, value, description) of each entry of a help text; an entry begins in the first column."""
    block: list[str] = []
    for line in [*text.splitlines(), "-"]:
        if line.startswith("-") and block:
            found = _ENTRY.match(block[0])
            if found and _REMOVED not in " ".join(" ".join(block).split()):
                rest = block[0][found.end() :]
                # One space separates a flag from its value, more (or a new line) the description.
                value = rest.strip().split("  ")[0] if re.match(r" \S", rest) else ""
                yield found.group(), value, rest
            block = []
        if line.startswith("-") or block:
            block.append(line)


class _Line:
    """Collects the flags that the binary knows and the user has not chosen in the model's `env`."""

    def __init__(self, binary: BinaryInfo, spec: ModelSpec) -> None:
        self.args: list[str] = []
        self._binary = binary
        self._variables = {name for name, _ in spec.env}
        self._chosen = {f"params.{name}" for name in spec.params.model_fields_set}

    def add(self, flag: Flag, value: object) -> bool:
        """The first known spelling with its value; False where there is none that takes a value."""
        if self._is_chosen_otherwise(flag):
            return True
        takes_value = self._binary.flags - self._binary.switches
        known = next((name for name in flag.names if name in takes_value), None)
        if known is not None:
            self.args += [known, str(value)]
        return known is not None

    def need(self, flag: Flag, value: object) -> None:
        if not self.add(flag, value):
            self._refuse(flag.names[0])

    def switch(self, flag: Flag) -> bool:
        if self._is_chosen_otherwise(flag):
            return True
        known = next((name for name in flag.names if name in self._binary.flags), None)
        if known is not None:
            self.args.append(known)
        return known is not None

    def must(self, flag: Flag) -> None:
        if not self.switch(flag):
            self._refuse(flag.names[0])

    def essential(self, name: str) -> None:
        """Known, though it is not written on the command line."""
        if name not in self._binary.flags:
            self._refuse(name)

    def is_switch(self, flag: Flag) -> bool:
        return flag.names[0] in self._binary.switches

    def _is_chosen_otherwise(self, flag: Flag) -> bool:
        return flag.variable in self._variables and flag.setting not in self._chosen

    def _refuse(self, name: str) -> None:
        raise CommandError(
            f"{self._binary.path} (version {self._binary.version}) does not know {name}, which this "
            "model needs: install a newer llama-server"
        )
