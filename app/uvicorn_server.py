"""A uvicorn server that drains before it closes, and leaves no llama-server behind whatever happens."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from app.api.dependencies import Services
from app.config_watcher import reload
from app.domain.units import MIB
from app.main import RouterApp, drain
from app.proxy.http_server import ProxyProtocol
from app.proxy.request_memory_limit import LARGE_BYTES

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that reads a header keeps the event loop waiting; Python's default is ten times that."""

OPEN_FILES = 65536
"""500 waiting clients on several models pass the usual soft limit of 1,024."""

GC_THRESHOLDS = (20_000, 20, 50)
"""So many more objects made than freed before the youngest are looked at; so many such looks before the next
generation is, and so many of those before the oldest."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As <malloc.h> names them."""

_KEPT_BYTES = 16 * MIB
"""Free memory that need not go back: giving and taking it costs time."""

STUCK_S = 25.0
"""More than the slowest orderly end takes after the drain: a process that outlives SIGKILL, open answers."""


def server_config(app: RouterApp, host: str | Sequence[str], port: int) -> uvicorn.Config:
    """How uvicorn serves the router, on one address or on several.

    The protocol gets its gateway from here: uvicorn may wrap the application, and behind a wrapper it would
    find none.
    """
    protocol: Any = partial(ProxyProtocol, gateway=app.gateway)
    return uvicorn.Config(
        app,
        host=cast(str, host),  # uvicorn only hands it on to the event loop, which takes several
        port=port,
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=75,
        backlog=4096,
    )


class RouterServer(uvicorn.Server):
    """First signal: drain, then close. Second signal: end the children at once and exit."""

    def __init__(
        self, app: RouterApp, host: str | Sequence[str], port: int, config_path: Path | None = None
    ) -> None:
        super().__init__(server_config(app, host, port))
        self._app, self._config_path = app, config_path
        self._reloading: asyncio.Task[None] | None = None
        self._reload_wanted = False
        self.last_resort: threading.Timer | None = None
        """Ends the process, some time after the shutdown began; to be cancelled by who goes on living."""
        atexit.register(self._kill_children)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._app.build_routes()
        await super().startup(sockets)
        await self._listen_for_ollama()
        freeze_garbage_collection()
        if self._config_path is not None and hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Still listening while it drains: newcomers are told that the router stops."""
        services: Services = self._app.state.services
        self.last_resort = self._exit_after(services.config.system.drain_timeout_sec + STUCK_S)
        if not self.force_exit:
            await drain(self._app)
        await super().shutdown(sockets)

    async def _listen_for_ollama(self) -> None:
        """The same on a second port, where one is configured."""
        port, config = self._app.state.configuration.current.api.ollama_port, self.config
        if port is None:
            return
        make: Any = partial(
            cast(Any, config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        listen = asyncio.get_running_loop().create_server
        self.servers.append(await listen(make, host=config.host, port=port, backlog=config.backlog))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            logger.warning("second signal: stopping at once")
            self._kill_children()
            os._exit(130 if sig == signal.SIGINT else 0)
        logger.info("stopping: running requests may finish; a second signal stops at once")
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again at the end, which would make the exit code that of a kill."""
        signals = [signal.SIGINT, signal.SIGTERM]
        if sys.platform == "win32":
            signals.append(signal.SIGBREAK)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _reload(self) -> None:
        self._reload_wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload_all(), name="reload")

    async def _reload_all(self) -> None:
        """Once more if the signal came while the file was read: what was read may be the old one."""
        while self._reload_wanted and self._config_path is not None:
            self._reload_wanted = False
            await reload(self._app.state.configuration, self._config_path)

    def _exit_after(self, timeout_s: float) -> threading.Timer:
        """A thread that hangs in a driver or on a disk must not keep the router from ending."""
        timer = threading.Timer(timeout_s, self._give_up)
        timer.daemon = True
        timer.start()
        return timer

    def _give_up(self) -> None:
        logger.error("something hangs and does not end; exiting without it")
        self._kill_children()
        os._exit(1)

    def _kill_children(self) -> None:
        services = getattr(self._app.state, "services", None)
        if services is not None:
            services.launcher.kill_all()


def freeze_garbage_collection() -> None:
    """What start-up made lives as long as the router: collections need not look at it again.

    A collection of the oldest generation held the loop for 75 ms, every second or so under load. Requests
    leave no circles behind, so that little is left to collect, and it can be done seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def give_memory_back() -> None:
    """What a large body took goes back to the system when it is freed.

    glibc raises its thresholds with what a program frees, up to 32 MB, and keeps what is smaller.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def raise_file_limit() -> None:
    """As many open files as the system allows us."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(app: RouterApp, host: str | Sequence[str], port: int, config_path: Path | None = None) -> int:
    """Serve until told to stop; the exit code. SIGHUP reads `config_path` again."""
    raise_file_limit()
    give_memory_back()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = RouterServer(app, host, port, config_path)
    try:
        server.run()
    except KeyboardInterrupt:
        return 130
    return 0 if server.started else 1
