"""`run.py check`: everything that can be known before a model is loaded."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from app import listen_check
from app.cli.devices import device_lines, device_warnings
from app.configuration import file as config_file
from app.configuration.file import ConfigError
from app.core.config import Config
from app.domain.model_spec import ALL_LAYERS, ModelSpec
from app.domain.status import ModelKind
from app.domain.views import HOST, MemoryNeed, Placement
from app.kinds_from_files import with_kinds_from_files
from app.llama.binary import BinaryNotFound, find_binary, inspect_binary
from app.llama.command_line import BinaryInfo, CommandError, build_command, unknown_flags
from app.llama.output.folder import why_not_writable
from app.llama.pooling import PoolingChoice, choose_pooling
from app.llama.runner_interface import LoadError
from app.llama.self_test import SelfTestFailed, check_binary
from app.memory.amount_to_reserve import Footprint, inspect, key, need
from app.memory.ledger.kept_free import KeptFree
from app.memory.load_history import FILE_NAME, LoadHistory
from app.memory.probes.choice import DRIVER_TIMEOUT_S, find_gpus, in_time
from app.memory.probes.cuda_visible_devices import VARIABLE
from app.memory.probes.host_memory import host_reading
from app.memory.probes.interface import GpuError, GpuProbe, Reading, offers_gpu, resolve
from app.scheduling.placement import Capacity, fit, fits_on_devices


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    alias: str
    file_mb: int | None
    need: MemoryNeed | None
    place: str
    problem: str | None = None
    measured_mb: int | None = None
    pooling: PoolingChoice | None = None


def run(path: Path) -> int:
    """Print what is right and what is wrong; 0 if the router could serve every model."""
    try:
        config, is_valid = config_file.load(path), True
    except ConfigError as error:
        print(error, file=sys.stderr)
        if error.usable is None:
            return 1
        config, is_valid = error.usable, False
        print(f"{path}: what else there is to see, without what is wrong in it")
    else:
        print(f"{path}: valid, {counted(len(config.models))}")
        for warning in config.warnings():
            print(f"  warning: {warning}")
    config = with_kinds_from_files(config)
    listens = _can_listen(config)
    binary = _binary(config)
    computes = binary is not None and _computes(binary)
    probe = find_gpus(binary.path if binary else None)
    readings = _devices(config, probe)
    if binary is not None and not computes and not _needs_processor(config, readings):
        print("  every model lies wholly on a GPU: it can be served all the same")
        computes = True
    no_logs = why_not_writable(Path(config.system.log_dir))
    if no_logs:
        print(f"logs: no model can be loaded: {no_logs}. Correct it, or set system.log_dir")
    history = LoadHistory(Path(config.system.log_dir) / FILE_NAME, binary.identity if binary else "")
    history.load()
    lines = [_line(spec, config, readings, binary, history) for spec in config.specs().values()]
    print("\n" + _table(lines))
    for line in lines:
        if line.pooling is not None:
            print(f"  {line.alias}: {line.pooling}")
    problems = [line for line in lines if line.problem]
    for line in problems:
        print(f"  {line.alias}: {line.problem}")
    healthy = is_valid and listens and computes and readings is not None and not no_logs and not problems
    print("\nall is well" if healthy else "\nnot ready to serve")
    return 0 if healthy else 1


def _can_listen(config: Config) -> bool:
    """A port in use is no mistake: the router itself may be running."""
    for name, port in config.api.ports.items():
        try:
            listen_check.places(config.api.addresses, port, name)
        except listen_check.CannotListen as error:
            if not error.is_in_use:
                print(f"api.host: {error}")
                return False
    return True


def counted(models: int) -> str:
    return "1 model" if models == 1 else f"{models} models"


def _binary(config: Config) -> BinaryInfo | None:
    try:
        binary = inspect_binary(find_binary(config.system.llama_server_path))
    except BinaryNotFound as error:
        print(f"llama-server: {error}")
        return None
    print(f"llama-server: {binary.path}, {binary.version}, {len(binary.flags)} flags")
    return binary


def _computes(binary: BinaryInfo) -> bool:
    """Only a load shows it: what was built for another processor still tells its version and its flags."""
    try:
        check_binary(binary.path)
    except (CommandError, SelfTestFailed) as error:
        print(f"llama-server: {error}")
        return False
    print("llama-server: computes on this machine")
    return True


def _needs_processor(config: Config, readings: list[Reading] | None) -> bool:
    """Whether a model would compute on the CPU, in whole or in part."""
    if all(reading.id == HOST for reading in readings or ()):
        return True
    return any(spec.params.n_gpu_layers < ALL_LAYERS for spec in config.specs().values())


def _devices(config: Config, probe: GpuProbe) -> list[Reading] | None:
    """None if a configured device is missing. No GPU at all is fine."""
    try:
        gpus = list(in_time(probe.read, DRIVER_TIMEOUT_S))
    except (GpuError, TimeoutError) as error:
        print(f"devices: unknown, the GPU driver does not tell ({error})")
        return None
    visible = os.environ.get(VARIABLE)
    for line in device_lines(gpus, config, visible):
        print(f"device {line}")
    for warning in device_warnings(gpus, config, visible):
        print(f"  warning: {warning}")
    if not gpus:
        print(f"devices: none ({probe.reason}); models run on the CPU")
    wanted = {d for spec in config.specs().values() for d in spec.gpu_devices or ()}
    missing = [d for d in wanted if not resolve(gpus, [d]) and (gpus or d != 0)]
    for device in missing if not gpus else ():
        print(f"device {device}: configured in gpu_devices, but not there")
    return None if missing else [*gpus, host_reading()]


def _line(
    spec: ModelSpec,
    config: Config,
    readings: list[Reading] | None,
    binary: BinaryInfo | None,
    history: LoadHistory,
) -> Line:
    try:
        found = inspect(spec)
        pooling = choose_pooling(spec, found.header)
        if binary is not None:
            build_command(binary, spec, {}, config.system.first_port, "key", os.environ, pooling.flag)
            if unknown := unknown_flags(binary, spec):
                raise CommandError(f"extra_args: this llama-server does not know {', '.join(unknown)}")
    except LoadError as error:
        return Line(spec.alias, None, None, "-", error.failure.message)
    except CommandError as error:
        return Line(spec.alias, None, None, "-", str(error))
    line = _placed(spec, found, config, readings or [host_reading()], history)
    return line if spec.kind is ModelKind.CHAT else replace(line, pooling=pooling)


def _placed(
    spec: ModelSpec, found: Footprint, config: Config, readings: list[Reading], history: LoadHistory
) -> Line:
    """Where it would go on empty devices."""
    gpus = [r for r in readings if r.id != HOST]
    places, multiplier = resolve(gpus, spec.gpu_devices), config.system.vram_multiplier
    has_gpu = offers_gpu(gpus, spec.gpu_devices)
    before = history.model(key(spec, found, history.build, has_gpu))
    cost = history.fixed_cost(r for r in gpus if r.id in places)
    takes = need(spec, found, places, has_gpu, multiplier, before, cost)
    kept_free = KeptFree.parse(config.system.min_free_vram_mb)
    sizes = {r.id: r.total_mb for r in readings}
    shared = frozenset(r.id for r in readings if r.shares_host)
    room = Capacity({r.id: r.total_mb - kept_free.of(r) for r in readings}, 1, sizes, shared)
    placement = fit(takes, room)
    problem = None if placement is not None else _shortage(takes, room)
    return Line(spec.alias, found.file_mb, takes, _place(placement), problem, before.seen_mb)


def _shortage(takes: MemoryNeed, room: Capacity) -> str:
    if fits_on_devices(takes, room):
        return (
            f"needs {takes.host_mb} MB of the machine's own memory, at most {room.free[HOST]} MB can be had"
        )
    return f"needs {takes.mb} MB, at most {room.most(takes)} MB can be had"


def _place(placement: Placement | None) -> str:
    if placement is None:
        return "nowhere"
    gpus = [f"GPU {device}" for device in placement if device != HOST]
    names = gpus or list(placement)
    return " + ".join(names) or "anywhere"


def _table(lines: list[Line]) -> str:
    rows: list[tuple[str, ...]] = [
        ("model", "file MB", "estimate MB", "measured MB", "reserves MB", "goes to", "")
    ]
    for line in lines:
        need = line.need
        estimate = need.mb if need and need.estimate_mb is None else need and need.estimate_mb
        sizes = (line.file_mb, estimate, line.measured_mb, need and need.mb)
        figures = ("-" if mb is None else str(mb) for mb in sizes)
        rows.append((line.alias, *figures, line.place, need.note if need else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    return "\n".join("  " + "  ".join(map(_aligned, row, widths, range(7))).rstrip() for row in rows)


def _aligned(text: str, width: int, column: int) -> str:
    return text.rjust(width) if 1 <= column <= 4 else text.ljust(width)
