"""An answer as Ollama's programs read it: lines of a stream, or one object. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from app.domain.errors import RouterError
from app.proxy.dialects.function_calls import Calls
from app.proxy.dialects.json_pieces import let_go
from app.proxy.dialects.llama_answers import Piece
from app.proxy.dialects.ollama.context_field import MOST_BYTES, Turn, packed
from app.proxy.dialects.ollama.number_format import NS, duration_ns, timestamp
from app.proxy.dialects.sse_format import in_pieces, line, object_in
from app.proxy.dialects.translation_interface import OBJECT_BYTES, Times
from app.proxy.dialects.translators import StreamTranslator, WholeTranslator

Body = dict[str, Any]


class LineFrame(NamedTuple):
    """What is known of an answer before a word of it."""

    model: str
    """As it was asked for."""
    now: float
    """Unix seconds, when it was asked."""
    is_chat: bool
    note: str = ""
    turns: Sequence[Turn] | None = None
    """What was said before it, for `context`; None: it has none."""

    def content(self, piece: Piece, calls: Sequence[Body] = ()) -> Body:
        """The fields that carry it."""
        more: Body = {"thinking": piece.thinking} if piece.thinking else {}
        probabilities: Body = {"logprobs": piece.logprobs} if piece.logprobs else {}
        if not self.is_chat:
            return {"response": piece.text} | more | probabilities
        if calls:
            more["tool_calls"] = calls
        return {"message": {"role": "assistant", "content": piece.text} | more} | probabilities

    def named(self, created: float) -> Body:
        return {"model": self.model, "created_at": timestamp(int(created * NS))}

    def at_once(self, reason: str) -> Body:
        """The answer to a request that asks for nothing but a load, or its end."""
        return {**self.named(self.now), **self.content(Piece()), "done": True, "done_reason": reason}


class LinesTranslator(StreamTranslator):
    """Events of llama-server's become lines. `read` knows which of its answers it is."""

    def __init__(self, frame: LineFrame, read: Callable[[Mapping[str, Any]], Piece], times: Times) -> None:
        super().__init__()
        self._frame, self._read, self._times, self._calls = frame, read, times, Calls()
        self._said: list[str] = []
        self._said_bytes = 0

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        """What is no answer passes as it is: nothing is known of it."""
        told = object_in(body)
        if told is None:
            return body
        piece = self._read(told)
        calls = self._calls.take(piece.calls) + self._calls.rest()
        self._say(piece.text)
        answer = self._created() | self._frame.content(piece, calls) | self._end_of(piece)
        text = in_pieces(answer, len(body))
        let_go(told, answer)
        return text

    @property
    def held(self) -> int:
        return super().held + self._said_bytes + OBJECT_BYTES * len(self._said)

    def _error(self, error: RouterError) -> bytes:
        return line({"error": error.message})

    def _events(self, told: Body, size: int) -> bytes:
        return b"".join([line(self._created() | body, size) for body in self._lines(self._read(told))])

    def _lines(self, piece: Piece) -> list[Body]:
        content = self._frame.content
        lines = []
        if piece.says_something:
            self._say(piece.text)
            lines.append(content(piece) | {"done": False})
        calls = self._calls.take(piece.calls)
        if piece.reason is not None:
            calls += self._calls.rest()
        lines += [content(Piece(), [call]) | {"done": False} for call in calls]
        if piece.reason is not None:
            self.is_over = True
            lines.append(content(Piece()) | self._end_of(piece))
        return lines

    def _say(self, text: str) -> None:
        """For `context`."""
        if self._frame.turns is not None and self._said_bytes <= MOST_BYTES:
            self._said.append(text)
            self._said_bytes += len(text)

    def _created(self) -> Body:
        times, frame = self._times, self._frame
        return frame.named(frame.now + times.now() - times.arrived)

    def _end_of(self, piece: Piece) -> Body:
        """What the last line says beside its content."""
        end: Body = {"done": True, "done_reason": piece.reason or "stop"}
        if (turns := self._frame.turns) is not None:
            context = packed([*turns, ("assistant", "".join(self._said))])
            end |= {"context": context} if context else {}
        if self._frame.note:
            end["note"] = self._frame.note
        return end | waited(self._times) | _counts(piece.timings)


def waited(times: Times) -> Body:
    """`load_duration` is all that came before: the queue, and the load."""
    return {
        "total_duration": duration_ns(times.now() - times.arrived),
        "load_duration": duration_ns(times.granted - times.arrived),
    }


_MS = 1000


def _counts(timings: Mapping[str, Any]) -> Body:
    """Tokens that came from the cache are of the prompt, too."""
    if not timings:
        return {}
    return {
        "prompt_eval_count": timings.get("prompt_n", 0) + timings.get("cache_n", 0),
        "prompt_eval_duration": duration_ns(timings.get("prompt_ms", 0) / _MS),
        "eval_count": timings.get("predicted_n", 0),
        "eval_duration": duration_ns(timings.get("predicted_ms", 0) / _MS),
    }


class ConstantTranslator(WholeTranslator):
    """Of an answer in which nothing is of interest but that there is one."""

    def __init__(self, made: Callable[[Body, Times], Body], times: Times) -> None:
        self._made, self._times = made, times

    def whole(self, body: bytes | bytearray) -> bytes | bytearray:
        told = object_in(body) or {}
        text = in_pieces(self._made(told, self._times), len(body))
        let_go(told)
        return text

    def fail(self, error: RouterError) -> bytes:
        return line({"error": error.message})
