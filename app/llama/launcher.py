"""Starts real llama-servers, each on a port and with a key of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from app.core.config import Config
from app.domain.model_spec import ModelSpec
from app.gguf.header import GgufError, GgufHeader, read_header
from app.gguf.split_model import split_parts
from app.judgement.router_pauses import Pauses
from app.llama.command_line import BinaryInfo, Command, CommandError, build_command, unknown_flags
from app.llama.exit_reason import Failure, FailureKind
from app.llama.llama_runner import LlamaRunner
from app.llama.orphans import PidFile
from app.llama.os_calls import NO_FILES_LEFT, files_left
from app.llama.output.writer import LogServer
from app.llama.pooling import choose_pooling
from app.llama.ports import Ports
from app.llama.process_timeouts import USUAL, ProcessTimes
from app.llama.readahead import read_ahead
from app.llama.runner_interface import LoadError, OnChange, Runner


class LlamaLauncher:
    """Starts real llama-servers. Use it on the thread that lives as long as the process: see `os_calls`."""

    TAKES = ("system.first_port", "system.load_timeout_sec")

    def __init__(
        self,
        binary: BinaryInfo,
        log_server: LogServer,
        first_port: int,
        load_timeout_s: float,
        *,
        env: Mapping[str, str] = os.environ,
        pid_file: PidFile | None = None,
        pauses: Pauses | None = None,
        times: ProcessTimes = USUAL,
    ) -> None:
        self.binary, self.load_timeout_s = binary, load_timeout_s
        self._log_server, self._env, self._pauses = log_server, env, pauses
        self._pid_file, self._times = pid_file, times
        self._ports = Ports(first_port)
        self._live: set[LlamaRunner] = set()
        self._told: dict[str, bool] = {}
        """By model: its last process has said by itself when it was ready."""

    def apply(self, config: Config) -> None:
        """For the starts to come."""
        self._ports.first, self.load_timeout_s = config.system.first_port, config.system.load_timeout_sec

    async def check(self, spec: ModelSpec) -> None:
        if unknown := unknown_flags(self.binary, spec):
            message = (
                f"This llama-server does not know the argument {', '.join(unknown)}. Correct extra_args, or "
                "update llama-server and restart the router."
            )
            raise LoadError(Failure(FailureKind.BAD_FLAG, message, None, ()))
        with anyio.move_on_after(self._times.check_timeout_s):  # a disk that hangs is not waited for
            failure = await anyio.to_thread.run_sync(self._preflight, spec.alias, abandon_on_cancel=True)
            if failure is not None:
                raise LoadError(failure)
            self._command(spec, {}, 0, "", await _pooling_flag(spec), None)

    async def prepare(self, spec: ModelSpec) -> None:
        projector = [Path(spec.params.mmproj)] if spec.params.mmproj else []
        await read_ahead([*split_parts(spec.path), *projector])

    @asynccontextmanager
    async def launch(
        self,
        spec: ModelSpec,
        placement: Mapping[str, int],
        on_change: OnChange,
        slot_folder: Path | None = None,
    ) -> AsyncIterator[Runner]:
        pooling = await _pooling_flag(spec)
        with self._ports.claim() as port:
            key = secrets.token_hex(24)
            command = self._command(spec, placement, port, key, pooling, slot_folder)
            log = self._log_server.open(spec.alias)
            files = split_parts(spec.path)
            runner = LlamaRunner(
                spec.alias,
                port,
                key,
                log,
                self.load_timeout_s,
                on_change,
                files,
                will_tell=self._told.get(spec.alias, False),
                pauses=self._pauses,
                times=self._times,
            )
            self._live.add(runner)
            try:
                await runner.spawn(command)
                if self._pid_file is not None:
                    self._pid_file.note(runner.pid, command.argv[1:])
                yield runner
            finally:
                self._told[spec.alias] = runner.evidence.said_ready
                try:
                    with anyio.CancelScope(shield=True):
                        await runner.stop()
                        await runner.reaped()
                finally:
                    runner.kill()  # a second cancellation of the task passes through the shield
                    self._live.discard(runner)
                    if self._pid_file is not None:
                        self._pid_file.forget(runner.pid)

    def kill_all(self) -> None:
        """For `atexit`: where no shutdown took place, nothing of ours stays behind. Not async."""
        for runner in tuple(self._live):
            runner.kill()

    def _preflight(self, alias: str) -> Failure | None:
        """Blocking."""
        if not files_left():
            return Failure(FailureKind.OUT_OF_FILES, NO_FILES_LEFT, None, ())
        path = self.binary.path
        if not (path.is_file() and os.access(path, os.X_OK)):
            why = "its permissions do not allow it" if path.exists() else "it is not there"
            message = f"{path} cannot be executed: {why}. Check system.llama_server_path."
            return Failure(FailureKind.BAD_BINARY, message, None, ())
        if error := self._log_server.check(alias):
            message = f"Its log {error}. Correct the permissions of the folder, or set system.log_dir."
            return Failure(FailureKind.LOG_FOLDER, message, None, ())
        return None

    def _command(
        self,
        spec: ModelSpec,
        placement: Mapping[str, int],
        port: int,
        key: str,
        pooling: str | None,
        slot_folder: Path | None,
    ) -> Command:
        try:
            return build_command(self.binary, spec, placement, port, key, self._env, pooling, slot_folder)
        except CommandError as error:
            raise LoadError(Failure(FailureKind.BAD_BINARY, str(error), None, ())) from error


async def _pooling_flag(spec: ModelSpec) -> str | None:
    """By the file's header, which was read for the estimate and is kept."""
    header = await anyio.to_thread.run_sync(_header, spec.path, abandon_on_cancel=True)
    return choose_pooling(spec, header).flag


def _header(path: Path) -> GgufHeader | None:
    """Blocking. None where llama-server has to see for itself."""
    try:
        return read_header(path)
    except (GgufError, OSError):
        return None
