"""Request by request what a real Ollama answers: status, type, fields and their types.

`here` is the router's status where it has another one, for the reason that docs/ollama.md gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.shapes import Least, Or, Shape, number, positive

JSON, LINES, TEXT = "application/json; charset=utf-8", "application/x-ndjson", "text/plain; charset=utf-8"
Body = dict[str, Any]
HI: Body = {"messages": [{"role": "user", "content": "Hi"}]}
SHORT: Body = {"options": {"num_predict": 4, "temperature": 0}}
WHOLE: Body = {"stream": False, **SHORT}
LONG: Body = {"messages": [{"role": "user", "content": "of " * 1500}]}
TOOLS: Body = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}

# --- what is answered

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
ERROR = {"error": re.compile(r".+", re.S)}
TOO_LONG = {"error": re.compile("the input length exceeds the context length.*")}
NAMED = {"model": str, "created_at": TIME}
COUNTS = {
    "total_duration": positive,
    "load_duration": positive,
    "prompt_eval_count": positive,
    "prompt_eval_duration": positive,
    "eval_count": positive,
    "eval_duration": positive,
}
REASON = Or("stop", "length")
LOAD, UNLOAD = {"done": True, "done_reason": "load"}, {"done": True, "done_reason": "unload"}
END = {"done": True, "done_reason": REASON, **COUNTS}
NO_RESPONSE, NO_MESSAGE = {"response": ""}, {"message": {"role": "assistant", "content": ""}}
GENERATED = {**NAMED, "response": str, **END}
WITH_CONTEXT = {**GENERATED, "context": [int]}
CHATTED = {**NAMED, "message": {"role": "assistant", "content": str}, **END}
PROBABLE = {"token": str, "logprob": number, "bytes": [int]}
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": str,
    "families": [str],
    "parameter_size": str,
    "quantization_level": str,
}
ABILITY = Or("completion", "embedding", "tools", "insert", "thinking", "vision", "audio")
DIGEST = re.compile("[0-9a-f]{64}")
TAG = re.compile(r".+:[^/]+")
LISTED = {
    "name": TAG,
    "model": TAG,
    "modified_at": TIME,
    "size": int,
    "digest": DIGEST,
    "details": {**DETAILS, "context_length": int, "embedding_length": int},
    "capabilities": [ABILITY],
}
RUNS = {
    "name": TAG,
    "model": TAG,
    "size": positive,
    "size_vram": int,
    "digest": DIGEST,
    "details": DETAILS,
    "expires_at": TIME,
    "context_length": positive,
}
SHOWN = Least(
    {
        "modelfile": str,
        "parameters": str,
        "details": DETAILS,
        "model_info": dict,
        "capabilities": [ABILITY],
        "tensors": [{"name": str, "type": str, "shape": [int]}],
        "modified_at": TIME,
    }
)
EMBEDDED = {
    "model": "embed",
    "embeddings": [[number]],
    "total_duration": positive,
    "load_duration": positive,
    "prompt_eval_count": positive,
}


def each(*values: Any) -> tuple[Any, ...]:
    return values


class Stream(NamedTuple):
    """A line for each token, and the last one."""

    line: Shape
    last: Shape


SPOKEN = {**NAMED, "message": {"role": "assistant", "content": str}, "done": False}
CHAT_STREAM = Stream(SPOKEN, {**NAMED, **NO_MESSAGE, **END})
WRITTEN = {**NAMED, "response": str, "done": False}
STREAM = Stream(WRITTEN, {**NAMED, **NO_RESPONSE, **END, "context": [int]})


class Row(NamedTuple):
    about: str
    path: str
    body: Any
    answer: Shape
    status: int = 200
    here: int | None = None
    method: str = "POST"
    type: str = JSON
    headers: Mapping[str, str] = {}
    gives: Mapping[str, str | None] = {}
    """Headers of the answer; None: it has none of that name."""

    @property
    def id(self) -> str:
        return f"{self.path.removeprefix('/api/')} {self.about}"


def get(path: str, answer: Shape, about: str = "", **more: Any) -> Row:
    return Row(about, path, None, answer, method="GET", **more)


def generate(about: str, answer: Shape, status: int = 200, here: int | None = None, **fields: Any) -> Row:
    type_ = LINES if isinstance(answer, Stream) else JSON
    body = {"model": "one", "prompt": "Hello", **SHORT, **fields}
    return Row(about, "/api/generate", body, answer, status, here, type=type_)


def chat(about: str, answer: Shape, status: int = 200, here: int | None = None, **fields: Any) -> Row:
    type_ = LINES if isinstance(answer, Stream) else JSON
    return Row(
        about, "/api/chat", {"model": "one", **HI, **SHORT, **fields}, answer, status, here, type=type_
    )


def embed(about: str, answer: Shape, status: int = 200, **fields: Any) -> Row:
    return Row(about, "/api/embed", {"model": "embed", "input": "the of", **fields}, answer, status)


def embeddings(about: str, answer: Shape, status: int = 200, here: int | None = None, **fields: Any) -> Row:
    body = {"model": "embed", "prompt": "the of", **fields}
    return Row(about, "/api/embeddings", body, answer, status, here)


def show(about: str, answer: Shape = SHOWN, status: int = 200, **fields: Any) -> Row:
    return Row(about, "/api/show", fields, answer, status)


FRAME = [
    get("/", "Ollama is running", type=TEXT),
    Row("HEAD", "/", None, "", method="HEAD", type=TEXT),
    get("/api/version", Least(version=re.compile(r"\d+\.\d+\.\d+"))),
    Row("HEAD", "/api/version", None, "", method="HEAD"),
    get("/api/status", {"cloud": {"disabled": True, "source": "env"}}),
    get("/api/nope", ERROR, status=404),
    get("/api/chat", ERROR, "with another method", status=405),
    Row("with another method", "/api/version", None, ERROR, 405, method="PUT"),
    Row("OPTIONS without an origin", "/api/chat", None, ERROR, 405, method="OPTIONS"),
    get("/api/version/", Least(version=str), "a slash at the end", status=301, here=200),
    Row("HEAD", "/api/tags", None, "", method="HEAD"),
    Row("HEAD", "/api/ps", None, "", 405, 200, method="HEAD"),
    get("/api/tags", {"models": [LISTED]}),
    get("/api/ps", {"models": [RUNS]}),
]
PAGES_OF_THIS_MACHINE = (
    "http://localhost",
    "https://localhost:3000",
    "http://127.0.0.1:5173",
    "https://127.0.0.1",
    "http://0.0.0.0:8080",
)
APPS = ("app://obsidian.md", "file://", "tauri://localhost", "vscode-webview://1a2b", "vscode-file://x")
STRANGERS = ("null", "chrome-extension://abc", "https://example.com", "http://localhost.example.com")
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
SHOW_ONE: Body = {"model": "one"}


def from_page(origin: str) -> list[Row]:
    headers, gives = {"Origin": origin}, {"access-control-allow-origin": origin, "vary": "Origin"}
    preflight = {**gives, "access-control-allow-headers": PREFLIGHT["Access-Control-Request-Headers"]}
    return [
        get("/api/tags", {"models": [LISTED]}, f"from {origin}", headers=headers, gives=gives),
        Row(f"from {origin}", "/api/show", SHOW_ONE, SHOWN, headers=headers, gives=gives),
        Row(
            f"before it from {origin}", "/api/chat", None, "OK", 204, 200, "OPTIONS", TEXT,
            {**headers, **PREFLIGHT}, {name: preflight[name] for name in preflight if name != "vary"},
        ),
    ]  # fmt: skip


def from_stranger(origin: str) -> list[Row]:
    """Here what changes nothing is answered, but the browser does not give it to the page."""
    headers, gives = {"Origin": origin}, {"access-control-allow-origin": None}
    return [
        get("/api/tags", {"models": [LISTED]}, f"from {origin}", status=403, here=200,
            headers=headers, gives=gives),
        Row(f"from {origin}", "/api/show", SHOW_ONE, ERROR, 403, headers=headers, gives=gives),
        Row(f"from {origin}", "/api/chat", {"model": "one", **HI, **SHORT}, ERROR, 403, headers=headers,
            gives=gives),
        Row(f"before it from {origin}", "/api/chat", None, ERROR, 403, method="OPTIONS",
            headers={**headers, **PREFLIGHT}, gives=gives),
    ]  # fmt: skip


HOSTS = ("localhost", "localhost:99", "a.localhost", "a.local:80", "a.internal", "127.0.0.1", "10.0.0.3:80",
         "192.168.1.5", "0.0.0.0", "[::1]:1")  # fmt: skip
WHO_ASKS = [
    *(row for origin in (*PAGES_OF_THIS_MACHINE, *APPS) for row in from_page(origin)),
    *(row for origin in STRANGERS for row in from_stranger(origin)),
    *(
        get("/api/version", Least(version=str), f"as {host}", headers={"Host": host})
        for host in HOSTS
    ),
    *(
        get("/api/version", ERROR, f"as {host}", status=403, headers={"Host": host})
        for host in ("example.com", "localhost.example.com:80")
    ),
    get("/api/version", Least(version=str), "as 8.8.8.8", status=403, here=200, headers={"Host": "8.8.8.8"}),
]  # fmt: skip
PATHS = ("generate", "chat", "embed", "embeddings", "show")
BODIES = [
    *(
        Row(f"body {body!r}", f"/api/{path}", body, ERROR, 400)
        for path in PATHS
        for body in (b"", b"{", b"[]", b'{"model":5}')
    ),
    *(
        Row(f"body {body!r}", f"/api/{path}", body, ERROR, 404)
        for path in ("generate", "embed")
        for body in (b"{}", b'{"model":""}', b'{"model":null}')
    ),
    *(
        Row(f"body {body!r}", f"/api/{path}", body, ERROR, 400)
        for path in ("chat", "show", "embeddings")
        for body in (b"{}", b'{"model":""}', b'{"model":null}')
    ),
    *(Row("an unknown model", f"/api/{path}", {"model": "nope"}, ERROR, 404) for path in PATHS),
    *(
        Row(f"the name {name!r}", f"/api/{path}", {"model": name}, ERROR, 400, 404)
        for path in PATHS
        for name in ("a b", "../x")
    ),
    Row("null", "/api/generate", b"null", ERROR, 404, 400),
    Row("text behind it", "/api/generate", b'{"model":"one","prompt":"a"} and more', ERROR, 200, 400),
    Row(
        "names in any case",
        "/api/chat",
        {"MODEL": "one", "Messages": [{"ROLE": "user", "Content": "Hi"}], **WHOLE},
        CHATTED,
    ),
    Row("no Content-Type", "/api/chat", json.dumps({"model": "one", **HI, **WHOLE}).encode(), CHATTED),
    Row(
        "another Content-Type",
        "/api/chat",
        json.dumps({"model": "one", **HI, **WHOLE}).encode(),
        CHATTED,
        headers={"Content-Type": "text/plain"},
    ),
    Row(
        "an Authorization",
        "/api/chat",
        {"model": "one", **HI, **WHOLE},
        CHATTED,
        headers={"Authorization": "Bearer x"},
    ),
]
NAMES = (
    [
        chat(f"the name {name!r}", {**CHATTED, "model": name}, model=name, stream=False)
        for name in (
            "one",
            "ONE",
            "one:latest",
            "library/one",
            "two:7b",
        )
    ]
    + [
        chat("another namespace", {**CHATTED, "model": "me/one"}, 404, 200, model="me/one", stream=False),
        chat(
            "the name in another library",
            {**CHATTED, "model": "registry.example/library/One:latest"},
            404,
            200,
            model="registry.example/library/One:latest",
            stream=False,
        ),
        chat("another tag", ERROR, 404, model="one:7b"),
    ]
    + [
        show(f"the name {name!r}", model=name)
        for name in ("one", "ONE:latest", "library/one", " one ", "Two:7b")
    ]
)
GENERATES = [
    generate("streamed", STREAM),
    generate("stream null", STREAM, stream=None),
    generate("whole", WITH_CONTEXT, stream=False),
    generate("no prompt", {**NAMED, **NO_RESPONSE, **LOAD}, prompt=""),
    Row(
        "no prompt at all",
        "/api/generate",
        {"model": "one", "stream": True},
        {**NAMED, **NO_RESPONSE, **LOAD},
    ),
    Row(
        "no prompt, keep_alive 0",
        "/api/generate",
        {"model": "fill", "keep_alive": 0},
        {**NAMED, **NO_RESPONSE, **UNLOAD},
    ),
    Row("an unknown model let go", "/api/generate", {"model": "nope", "keep_alive": 0}, ERROR, 404),
    generate("raw, streamed", Stream(WRITTEN, {**NAMED, **NO_RESPONSE, **END}), raw=True),
    generate("raw", GENERATED, raw=True, stream=False),
    *(
        generate(f"raw with {name}", ERROR, 400, raw=True, **{name: value})
        for name, value in each(("system", "x"), ("template", "x"), ("context", [1]))
    ),
    generate("a system text", WITH_CONTEXT, system="Be kind.", stream=False),
    generate("a foreign context", WITH_CONTEXT, context=[1, 4093, 198], stream=False),
    generate("a broken template", ERROR, 500, 400, template="{{"),
    generate("a suffix, no ability", ERROR, 400, suffix="x"),
    generate("an image, no ability", ERROR, 400, images=["aGVsbG8="]),
    generate("an image and no prompt", {**NAMED, **NO_RESPONSE, **LOAD}, prompt="", images=["aGVsbG8="]),
    generate("an image that is none", ERROR, 400, images=["a*b"]),
    generate("a model for vectors", ERROR, 400, model="embed"),
    generate("think, no ability", ERROR, 400, think=True),
    generate("think, a level, no ability", ERROR, 400, think="low"),
    generate("think, no ability, raw", ERROR, 400, think=True, raw=True),
    generate("an image, no ability, raw", ERROR, 400, images=["aGVsbG8="], raw=True),
    generate("think false", WITH_CONTEXT, think=False, stream=False),
    *(generate(f"think {think!r}", ERROR, 400, think=think) for think in each("huge", "", 5, [], {})),
    *(
        generate(f"format {format_!r}", WITH_CONTEXT, format=format_, stream=False)
        for format_ in each("json", {}, "", None, {"type": "object", "properties": {"a": {"enum": [7]}}})
    ),
    *(
        generate(f"format {format_!r}", ERROR, 500, format=format_)
        for format_ in each("xml", 5, [], "JSON", True)
    ),
    generate("a schema that cannot be used", ERROR, 400, format={"type": "nonsense"}),
    generate(
        "only rendered",
        {**NAMED, **NO_RESPONSE, "done": False, "_debug_info": {"rendered_template": str}},
        _debug_render_only=True,
    ),
    generate(
        "only rendered, raw",
        {**NAMED, **NO_RESPONSE, "done": False, "_debug_info": {"rendered_template": "Hello"}},
        _debug_render_only=True,
        raw=True,
    ),
    generate("think, no ability, only a load", ERROR, 400, think=True, prompt=""),
    generate("logprobs, streamed", Stream({**WRITTEN, "logprobs": [PROBABLE]}, STREAM.last), logprobs=True),
    generate("logprobs", {**WITH_CONTEXT, "logprobs": [PROBABLE]}, logprobs=True, stream=False),
    generate(
        "logprobs with others",
        {**WITH_CONTEXT, "logprobs": [{**PROBABLE, "top_logprobs": [PROBABLE]}]},
        logprobs=True,
        top_logprobs=2,
        stream=False,
    ),
    generate("logprobs, raw", {**GENERATED, "logprobs": [PROBABLE]}, logprobs=True, raw=True, stream=False),
    generate("top_logprobs alone", WITH_CONTEXT, top_logprobs=2, stream=False),
    *(generate(f"top_logprobs {most}", ERROR, 400, top_logprobs=most) for most in (-1, 21, "x")),
    *(
        generate(f"{name} of another type", ERROR, 400, **{name: value})
        for name, value in each(
            ("prompt", 5),
            ("system", 5),
            ("suffix", 5),
            ("stream", "x"),
            ("raw", "x"),
            ("truncate", "x"),
            ("shift", 1),
            ("logprobs", 5),
            ("context", 5),
            ("images", "x"),
            ("options", []),
            ("template", 5),
        )
    ),
]
CHATS = [
    chat("streamed", CHAT_STREAM),
    chat("whole", CHATTED, stream=False),
    chat("no messages", {**NAMED, **NO_MESSAGE, **LOAD}, messages=[]),
    Row("no messages at all", "/api/chat", {"model": "one"}, {**NAMED, **NO_MESSAGE, **LOAD}),
    Row(
        "let go",
        "/api/chat",
        {"model": "fill", "messages": [], "keep_alive": "0s"},
        {**NAMED, **NO_MESSAGE, **UNLOAD},
    ),
    *(
        chat(f"messages {messages}", CHATTED, messages=messages, stream=False)
        for messages in (
            [{"role": "USER", "content": "Hi"}],
            [{"role": "wizard", "content": "Hi"}],
            [{"content": "Hi"}],
            [{"role": "user"}],
            [None],
            [*HI["messages"], {"role": "assistant", "content": "We"}],
        )
    ),
    *(
        chat(f"messages {messages}", ERROR, 400, messages=messages)
        for messages in (
            "x",
            ["x"],
            [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            [{"role": "user", "content": 5}],
            [{"role": 5, "content": "x"}],
            [{"role": "user", "content": "x", "thinking": 5}],
            [{"role": "user", "content": "x", "tool_name": 5}],
            [{"role": "user", "content": "x", "tool_call_id": []}],
            [{"role": "user", "content": "x", "images": ["a*b"]}],
            [{"role": "user", "content": "x", "images": ["aGVsbG8="]}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
        )
    ),
    chat("a model for vectors", ERROR, 400, model="embed"),
    chat("no tools", CHATTED, tools=[], stream=False),
    chat("tools, no ability", ERROR, 400, model="plain", **TOOLS),
    *(chat(f"tools {tools!r}", ERROR, 400, tools=tools) for tools in each("x", {}, [5])),
    chat(
        "an answer of a tool",
        CHATTED,
        stream=False,
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "tool_name": "f", "content": "22 C"},
        ],
    ),
    chat("think, no ability", ERROR, 400, think="high"),
    chat("think, no ability, only a load", ERROR, 400, think=True, messages=[]),
    chat("tools, no ability, only a load", ERROR, 400, model="plain", messages=[], **TOOLS),
    chat("an option of another type, only a load", ERROR, 500, messages=[], options={"top_k": "x"}),
    chat(
        "think, let go",
        {**NAMED, **NO_MESSAGE, **UNLOAD},
        model="fill",
        think=True,
        messages=[],
        keep_alive=0,
    ),
    chat(
        "only rendered",
        {**NAMED, **NO_MESSAGE, "done": False, "_debug_info": {"rendered_template": str}},
        _debug_render_only=True,
    ),
    chat("logprobs", {**CHATTED, "logprobs": [PROBABLE]}, logprobs=True, stream=False),
    chat("a prompt that is too long", CHATTED, stream=False, **LONG),
    chat("a prompt that is too long, as it is", TOO_LONG, 400, truncate=False, **LONG),
    chat("a file that is gone", ERROR, 400, 500, model="gone"),
    chat("a file that is cut", ERROR, 500, model="cut"),
    chat("a file without a header", ERROR, 500, model="garbage"),
]
OPTIONS = [
    *(
        chat(f"options {option}", ERROR, 500, options=option)
        for option in (
            {"temperature": "x"},
            {"top_k": "x"},
            {"use_mmap": 1},
            {"stop": "x"},
            {"stop": [5]},
            {"seed": "1"},
            {"num_ctx": "x"},
            {"num_predict": True},
            {"num_gpu": "x"},
            {"min_p": True},
        )
    ),
    *(
        chat(f"options {option}", CHATTED, stream=False, options={"num_predict": 4, **option})
        for option in (
            {"top_k": 40.9},
            {"stop": ["a"]},
            {"mirostat": 1, "tfs_z": "x", "numa": 5, "low_vram": True},
            {"num_gpu": None},
            {"repeat_last_n": -1},
            {"top_k": 2**40, "seed": 2**40},
            {"top_p": None},
            {"num_ctx": 256},
            {"num_keep": 1.5},
            {"num_batch": 8, "num_thread": 1, "main_gpu": 0},
        )
    ),
    chat(
        "a larger context",
        {**CHATTED, "note": str},
        stream=False,
        options={"num_predict": 4, "num_ctx": 99999},
    ),
]
KEPT = [
    *(
        generate(f"keep_alive {value!r}", WITH_CONTEXT, keep_alive=value, stream=False)
        for value in (
            900,
            600.5,
            -1,
            -1.0,
            "10m",
            "1h30m",
            "900000ms",
            "-1s",
            "1.5h",
            "+5m",
            "900000000us",
            None,
        )
    ),
    *(
        generate(f"keep_alive {value!r}", ERROR, 400, keep_alive=value)
        for value in each("-1", "30", "1d", "", "abc", "1h30", " 5m", "1e3", "-", True, False, [], {})
    ),
]
VECTORS = [
    embed("of one", EMBEDDED),
    embed("of several", EMBEDDED, input=["the", "of"]),
    *(
        embed(f"input {given!r}", {"model": "embed", "embeddings": []}, input=given)
        for given in each("", [], None)
    ),
    *(embed(f"input {given!r}", ERROR, 400, input=given) for given in each(5, [5], {}, [["x"]])),
    *(embed(f"dimensions {most}", EMBEDDED, dimensions=most) for most in (4, 9999, 0)),
    embed("dimensions of another type", ERROR, 400, dimensions="x"),
    embed("too long", EMBEDDED, input="of " * 500),
    embed("too long, as it is", TOO_LONG, 400, input="of " * 500, truncate=False),
    embed(
        "a smaller context", {**EMBEDDED, "prompt_eval_count": 10}, options={"num_ctx": 10}, input="of " * 20
    ),
    embed(
        "a smaller context, several",
        {**EMBEDDED, "prompt_eval_count": 23},
        options={"num_ctx": 10},
        input=["of", "of " * 20, "the " * 20],
    ),
    embed(
        "a smaller context, as it is",
        TOO_LONG,
        400,
        options={"num_ctx": 10},
        input="of " * 20,
        truncate=False,
    ),
    embed("a smaller context with room", EMBEDDED, options={"num_ctx": 10}, input="of the", truncate=False),
    *(
        embed(f"a context of {most}", ERROR, 400, options={"num_ctx": most}, input="of the of the of the")
        for most in (0, 1, 2)
    ),
    embed("another kind", ERROR, 501, model="one"),
    embed("an option of another type", ERROR, 500, options={"seed": "x"}),
    embeddings("of one", {"embedding": [number]}),
    *(embeddings(f"prompt {given!r}", {"embedding": []}, prompt=given) for given in ("", None)),
    embeddings("another kind", ERROR, 500, model="one"),
    embeddings("a field that it has not", {"embedding": [number]}, truncate=5),
    embeddings("too long", {"embedding": [number]}, 500, 200, prompt="of " * 500),
    embeddings(
        "a smaller context", {"embedding": [number]}, 500, 200, prompt="of " * 20, options={"num_ctx": 10}
    ),
    embeddings("prompt of another type", ERROR, 400, prompt=5),
]
SHOWS = [
    show("the model", model="one"),
    show("by its old field", name="one"),
    show("as the command line asks", model="", name="one", system="", template="", options=None),
    show(
        "all of it",
        Least({**SHOWN, "model_info": Least({"tokenizer.ggml.tokens": [str]})}),
        model="one",
        verbose=True,
    ),
    show(
        "without its arrays",
        Least({**SHOWN, "model_info": Least({"tokenizer.ggml.tokens": None})}),
        model="one",
    ),
    show("a system text", Least({**SHOWN, "system": "Be kind."}), model="one", system="Be kind."),
    show("a field that it has not", model="one", license="x"),
    show("an option that is none", model="one", options={"temperature": "x", "unknown": 1}),
    *(
        show(f"{name} of another type", ERROR, 400, model="one", **{name: 5})
        for name in ("system", "template", "options", "verbose")
    ),
]
TOLD = Least(error=Least(message=str, type=str))
CHAT = "/v1/chat/completions"


def of_openai(
    about: str, path: str, answer: Shape, status: int = 200, here: int | None = None, **fields: Any
) -> Row:
    model = "embed" if path.endswith("embeddings") else "one"
    return Row(about, path, {"model": model, **fields}, answer, status, here)


OF_OPENAI = [
    get("/health", Least(status=str), status=404, here=200, type="application/json"),
    get("/v1", TOLD, status=404),
    Row("an empty body", CHAT, b"", TOLD, 400),
    Row("half a body", CHAT, b"{", TOLD, 400),
    of_openai("an empty conversation", CHAT, Least(choices=[dict]), 400, 200, messages=[], max_tokens=2),
    *(
        of_openai(
            f"the content {content!r:.60}", CHAT, TOLD, 400, messages=[{"role": "user", "content": content}]
        )
        for content in each(5, {}, [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}])
    ),
    *(
        of_openai(
            f"{name}",
            CHAT,
            Least(choices=[Least(message=Least(content=str))]),
            **HI,
            max_tokens=2,
            **{name: value},
        )
        for name, value in each(
            ("temperature", 0.5),
            ("top_p", 0.5),
            ("seed", 7),
            ("stop", ["a"]),
            ("frequency_penalty", 0.1),
            ("presence_penalty", 0.1),
            ("response_format", {"type": "json_object"}),
            ("tools", TOOLS["tools"]),
            ("reasoning_effort", "none"),
            ("max_completion_tokens", 2),
            ("n", 1),
            ("logit_bias", {}),
            ("ignore_eos", False),
            ("options", {"num_predict": 1}),
            ("keep_alive", 600),
        )
    ),
    of_openai(
        "probabilities",
        CHAT,
        Least(choices=[Least(logprobs=Least(content=[Least(PROBABLE)]))]),
        **HI,
        max_tokens=2,
        logprobs=True,
    ),
    of_openai(
        "several texts",
        "/v1/completions",
        Least(choices=[Least(text=str)]),
        400,
        200,
        prompt=["a", "b"],
        max_tokens=2,
    ),
    of_openai(
        "in base 64",
        "/v1/embeddings",
        Least(data=[Least(embedding=str)]),
        input="the",
        encoding_format="base64",
    ),
    of_openai("in another format", "/v1/embeddings", TOLD, 400, input="the", encoding_format="x"),
    of_openai("of tokens", "/v1/embeddings", Least(data=[Least(embedding=[number])]), 400, 200, input=[1, 2]),
    get("/v1/responses", TOLD, status=404, here=405),
    get("/v1/responses/resp_1", TOLD, status=404),
    of_openai("after another", "/v1/responses", TOLD, 200, 404, input="Hi", previous_response_id="resp_1"),
    of_openai(
        "without a limit",
        "/v1/messages",
        Least(type="message"),
        400,
        200,
        **HI,
        stop_sequences=["a", "e", "o", "t"],
    ),
    of_openai("counted", "/v1/messages/count_tokens", {"input_tokens": positive}, 404, 200, **HI),
    get("/v1/models", Least(object="list", data=[Least(id=str, object="model", created=int, owned_by=str)])),
    get("/v1/models/one", Least(id="one", object="model", created=int, owned_by=str)),
    get("/v1/models/nope", Least(error=Least(message=str, type=str)), status=404),
    Row(
        "a name with a tag",
        "/v1/chat/completions",
        {"model": "ONE:latest", **HI, "max_tokens": 2},
        Least(
            id=str,
            object="chat.completion",
            created=int,
            model=str,
            usage=dict,
            choices=[Least(index=0, message=Least(role="assistant", content=str), finish_reason=REASON)],
        ),
    ),
    Row("no messages", "/v1/chat/completions", {"model": "one"}, Least(error=Least(message=str)), 400),
    Row(
        "an unknown model",
        "/v1/chat/completions",
        {"model": "nope", **HI},
        Least(error=Least(message=str)),
        404,
    ),
    Row(
        "text",
        "/v1/completions",
        {"model": "one", "prompt": "a", "max_tokens": 2},
        Least(id=str, object="text_completion", choices=[Least(text=str, finish_reason=REASON)]),
    ),
    Row(
        "vectors",
        "/v1/embeddings",
        {"model": "embed", "input": "the"},
        Least(object="list", data=[Least(object="embedding", embedding=[number], index=int)]),
    ),
    Row("no input", "/v1/embeddings", {"model": "embed"}, Least(error=Least(message=str)), 400),
    Row(
        "an answer",
        "/v1/responses",
        {"model": "one", "input": "Hi", "max_output_tokens": 2},
        Least(id=str, object="response", output=[Least(type=str)]),
    ),
    Row(
        "a message",
        "/v1/messages",
        {"model": "one", "max_tokens": 2, **HI},
        Least(id=str, type="message", role="assistant", content=[Least(type="text", text=str)]),
    ),
    Row(
        "a message of an unknown model",
        "/v1/messages",
        {"model": "nope", "max_tokens": 2, **HI},
        Least(type="error", error=Least(type=str, message=str)),
        404,
    ),
]


ROWS = [
    *FRAME,
    *WHO_ASKS,
    *BODIES,
    *NAMES,
    *GENERATES,
    *CHATS,
    *OPTIONS,
    *KEPT,
    *VECTORS,
    *SHOWS,
    *OF_OPENAI,
]
