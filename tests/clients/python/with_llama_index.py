"""LlamaIndex's classes for servers that are like OpenAI's.

It makes a tool's schema of the function's annotations, so they are no texts here.
"""

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from telling import (
    ASK,
    BASE,
    BROKEN,
    CALLER,
    CHAT,
    CRASHING,
    EMBED,
    ENDLESS,
    KEY,
    LONG_S,
    MOST_IN_A_CALL,
    MOST_TOKENS,
    NARROW,
    NOBODY,
    OTHER,
    WRONG_KEY,
    step,
    text,
    until_it_fails,
)

TALK = [ChatMessage(role="user", content=ASK)]
HERE = {"api_base": f"{BASE}/v1", "timeout": LONG_S}


def model(name: str, most_tokens: int | None = MOST_TOKENS, key: str = KEY) -> OpenAILike:
    return OpenAILike(
        model=name,
        api_key=key,
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=most_tokens,
        temperature=0,
        **HERE,
    )


def chat(name: str, key: str = KEY) -> str:
    return model(name, key=key).chat(TALK).message.content


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return city


def call() -> list[object]:
    llm, tool = model(CALLER, MOST_IN_A_CALL), FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], user_msg=ASK, tool_required=True)
    (use,) = llm.get_tool_calls_from_response(answer)
    return [use.tool_name, use.tool_kwargs]


def embed() -> list[int]:
    embeddings = OpenAILikeEmbedding(model_name=EMBED, api_key=KEY, **HERE)
    return [len(vector) for vector in embeddings.get_text_embedding_batch(["a", "b"])]


step("chat", lambda: chat(CHAT))
step("stream", lambda: text(piece.delta for piece in model(CHAT).stream_chat(TALK)))
step("tools", call)
step("swap", lambda: [chat(OTHER), chat(CHAT)])
step("embed", embed)
step("unknown", lambda: chat(NOBODY))
step("wrong_key", lambda: chat(CHAT, WRONG_KEY))
step("broken", lambda: chat(BROKEN))
step("too_long", lambda: chat(NARROW))
step("crashing", lambda: chat(CRASHING))
step("failing", lambda: text(p.delta for p in until_it_fails(model(ENDLESS, None).stream_chat(TALK))))
