"""How requests are given up, and how a process ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from tools.llama_facts.fact import Claims
from tools.llama_facts.server import Server, Subject, ready, spec_of, within

ENDLESS = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 10**6, "ignore_eos": True}
CHAT = "/v1/chat/completions"
LIVES_ON_S = 1.5
FREED_S = 20.0  # far more than it takes
TOLD, TOLD_EVERY_S = 20, 0.1
CONVERSATION = {"X-Conversation-Id": "any"}
ORDERLY = (0, -signal.SIGTERM)


def claims(subject: Subject) -> Claims:
    long = spec_of(subject.long, n_ctx=131072)
    with ready(subject, long) as server:
        with _streaming(server):
            busy = server.busy()
        freed = within(FREED_S, lambda: not server.busy())
        yield "a stream that is closed gives its slot back", busy and freed, (busy, freed)
        server.told_to_exit()
        code = server.exit_code()
        yield "told to exit and SIGTERM, idle: an orderly end", code in ORDERLY, code
    with ready(subject, spec_of(subject.tiny), child=False) as server:
        server.process.terminate()
        code = server.exit_code()
        yield "SIGTERM, idle, no child of a router: an orderly end", code in ORDERLY, code
    with ready(subject, spec_of(subject.tiny)) as server:
        assert server.process.stdin is not None
        server.process.stdin.close()
        code = server.exit_code()
        yield "end of file on stdin ends the child of a router", code is not None, code
    with ready(subject, long) as server, _streaming(server):
        server.told_to_exit()
        code = _told_again(server)
        yield "a second SIGTERM ends it with a request in flight", code is not None, code
    yield from _conversations(subject)


def _conversations(subject: Subject) -> Claims:
    """Why the router never passes that header on."""
    with ready(subject, spec_of(subject.long, n_ctx=131072)) as server:
        with _streaming(server, CONVERSATION):
            pass
        freed = within(LIVES_ON_S, lambda: not server.busy())
        yield "X-Conversation-Id: generates on after its client has left", not freed, "it stops now"
        server.told_to_exit()
        code = server.exit_code(LIVES_ON_S)
        yield "X-Conversation-Id: keeps the process from obeying SIGTERM", code is None, f"exit code {code}"


def _told_again(server: Server) -> int | None:
    """And again: two that come before it looks are one to it."""
    for _ in range(TOLD):
        if server.exit_code(TOLD_EVERY_S) is not None:
            break
        server.process.terminate()
    return server.exit_code()


@contextmanager
def _streaming(server: Server, headers: Mapping[str, str] | None = None) -> Iterator[None]:
    """A stream that has begun and would not end; closed at the end of the block."""
    with closing(server.connect()) as connection:
        answer = server.open(connection, "POST", CHAT, {**ENDLESS, "stream": True}, headers=headers)
        with closing(answer):
            answer.read(100)
            yield
