"""What answers on the port of a process: nobody, a model that loads, ours that serves, or another program."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

import anyio
import httpx

from app.llama.control_client import refused
from app.llama.os_process import out_of_files

ASK_TIMEOUT_S = 5.0
PORT_CLOSED_S = 3.0  # a port that was open and refuses for this long has been closed

_NO_ANSWER = (httpx.RequestError, TimeoutError)


class PortAnswer(Enum):
    NOTHING = "nothing"
    LOADING = "loading"
    SERVES = "serves"
    NOT_OURS = "not ours"


class PortProbe:
    """Asks on the port of one process. `says_ready`: the process has said that it serves."""

    def __init__(
        self,
        port: int,
        api_key: str,
        http: httpx.AsyncClient,
        says_ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._api_key, self._http = f"http://127.0.0.1:{port}", api_key, http
        self._says_ready, self._clock = says_ready, clock
        self._was_open = False
        self._refused_since: float | None = None

    async def healthy(self, timeout_s: float) -> bool:
        try:
            return await self._get("/health", timeout_s) == 200
        except _NO_ANSWER as error:
            return out_of_files(error)  # it could not even be asked

    async def look(self) -> PortAnswer:
        try:
            status = await self._get("/health", ASK_TIMEOUT_S)
            if status == 503:
                return PortAnswer.LOADING
            # Only our process asks for our key. /health is public, /props is not.
            ours = await self._get("/props", ASK_TIMEOUT_S, key=False) == 401
            ours = ours and await self._get("/props", ASK_TIMEOUT_S) == 200
        except _NO_ANSWER as error:
            if refused(error):
                self._note(is_open=False)
            elif not isinstance(error, (httpx.ConnectError, TimeoutError)):  # these tell nothing of the port
                self._note(is_open=True)
            return PortAnswer.NOTHING
        return PortAnswer.SERVES if status == 200 and ours else PortAnswer.NOT_OURS

    @property
    def is_closed(self) -> bool:
        """It was open, and has refused for a while."""
        since = self._refused_since
        return since is not None and self._clock() - since > PORT_CLOSED_S

    def _note(self, *, is_open: bool) -> None:
        """A refusal counts only after the port was open, or after the process said that it is ready: until
        then the process is starting, and a large build on a cold disk starts for a long time."""
        if is_open:
            self._was_open, self._refused_since = True, None
        elif self._refused_since is None and (self._was_open or self._says_ready()):
            self._refused_since = self._clock()

    async def _get(self, path: str, timeout_s: float, *, key: bool = True) -> int:
        # One connection each: an idle one holds a thread of the server, and dies after 5 s anyway.
        headers = {"Connection": "close"}
        if key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        with anyio.fail_after(timeout_s):
            async with self._http.stream("GET", self._url + path, headers=headers) as answer:
                status: int = answer.status_code
        self._note(is_open=True)
        return status
