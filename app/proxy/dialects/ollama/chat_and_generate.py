"""`/api/chat` and `/api/generate`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from app.domain.errors import BadRequest
from app.gguf.model_card import ModelCard
from app.proxy.dialects import llama_answers
from app.proxy.dialects.json_pieces import text_of
from app.proxy.dialects.llama_answers import Piece
from app.proxy.dialects.ollama import common_fields, context_field, options, shortening
from app.proxy.dialects.ollama.answer_lines import ConstantTranslator, LineFrame, LinesTranslator
from app.proxy.dialects.ollama.conversation import messages, said
from app.proxy.dialects.ollama.images import images
from app.proxy.dialects.ollama.ollama_errors import no_model, not_able, wrong_type
from app.proxy.dialects.sse_format import as_json
from app.proxy.dialects.translation_interface import Again, Asked, Incoming, Times, Told, Translator

Fields = dict[str, Any]
CardOf = Callable[[str], ModelCard | None]

CHAT, TEXT, INFILL, TOKENIZE, TEMPLATE = (
    "/v1/chat/completions", "/completion", "/infill", "/tokenize", "/apply-template",
)  # fmt: skip
"""llama-server's."""

_OWN_TEMPLATE = (
    "a template of its own is not taken for one request: set params.chat_template in the router's "
    "configuration, or send the whole prompt with raw"
)


_NO_IMAGES = "images are taken with a prompt or messages only, not with raw or suffix"


_SWITCHES = ("truncate", "shift", "logprobs", "_debug_render_only")
"""Fields that are true or false."""


def loaded(incoming: Incoming, answer: Callable[[str], Fields]) -> Asked | Told:
    """`answer`: what is said, by the reason. Asked for nothing, a model is loaded; or let go, after which
    nobody waits for it."""
    if incoming.ttl_s == 0:
        return Told(as_json(answer("unload")))
    if incoming.is_loaded:
        return Told(as_json(answer("load")))
    translator = partial(ConstantTranslator, lambda _body, _times: answer("load"))
    return Asked(as_json({"content": ""}), False, translator, TOKENIZE, keeps_ttl=True)


class TextTranslation:
    """What both have in common."""

    edits = True
    is_chat = False

    def __init__(self, card_of: CardOf) -> None:
        """`card_of`: what is known of a model's file, by its alias."""
        self._card_of = card_of

    def size(self, incoming: Incoming) -> int:
        return len(incoming.body)

    def _frame(self, incoming: Incoming, **more: Any) -> LineFrame:
        return LineFrame(incoming.fields["asked_model"], incoming.now, self.is_chat, **more)

    def _context(self, incoming: Incoming) -> int:
        """Tokens that one request may use."""
        card, configured = self._card_of(incoming.spec.alias), incoming.spec.params.n_ctx
        return min(configured, card.n_ctx_train) if card and card.n_ctx_train else configured

    def _loaded(self, incoming: Incoming) -> Asked | Told:
        """Of a request that says nothing more. To be let go a model needs no abilities."""
        if incoming.ttl_s != 0:
            common_fields.thinking(incoming.fields, self._card_of(incoming.spec.alias))
            options.read(incoming.fields.get("options"), self._context(incoming))
        return loaded(incoming, self._frame(incoming).at_once)

    def _conversation(self, incoming: Incoming, body: Fields, **more: Any) -> Asked:
        """llama-server is asked for the next turn after `body["messages"]`."""
        fields = incoming.fields
        if fields.get("template"):
            raise BadRequest(_OWN_TEMPLATE, param="template")
        wanted = options.read(fields.get("options"), self._context(incoming))
        body |= wanted.fields | common_fields.thinking(fields, self._card_of(incoming.spec.alias))
        if (schema := common_fields.schema(fields)) is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        if (most := common_fields.logprobs(fields)) is not None:
            body |= {"logprobs": True, "top_logprobs": max(most, 1)}
        again = None if fields.get("truncate") is False else shortening.of_messages()
        frame = self._frame(incoming, note=wanted.note, **more)
        return self._asked(incoming, body, CHAT, frame, partial(llama_answers.of_chat, most or 0), again)

    def _asked(
        self,
        incoming: Incoming,
        body: Fields,
        path: str,
        frame: LineFrame,
        read: Callable[[Mapping[str, Any]], Piece],
        again: Again | None,
    ) -> Asked:
        renders_only = incoming.fields.get("_debug_render_only") is True and path == CHAT
        body |= {"model": incoming.spec.alias, "stream": incoming.stream and not renders_only}
        text = text_of(body, len(incoming.body))
        if renders_only:
            translator: Callable[[Times], Translator] = partial(ConstantTranslator, partial(_rendered, frame))
            return Asked(text, False, translator, TEMPLATE, keeps_ttl=True)
        translator = partial(LinesTranslator, frame, read)
        return Asked(text, incoming.stream, translator, path, again, keeps_ttl=True)


def _rendered(frame: LineFrame, told: Fields, _times: Times | None = None) -> Fields:
    about = {"_debug_info": {"rendered_template": told.get("prompt", "")}}
    return {**frame.named(frame.now), **frame.content(Piece()), "done": False, **about}


class ChatTranslation(TextTranslation):
    """`/api/chat`."""

    is_chat = True

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        missing = BadRequest("model is required", param="model")
        return common_fields.named(common_fields.normal(given), missing, *_SWITCHES)

    def ask(self, incoming: Incoming) -> Asked | Told:
        fields = incoming.fields
        conversation = messages(fields.get("messages", []))
        if not conversation and incoming.ttl_s == 0:
            return self._loaded(incoming)
        body: Fields = {"messages": conversation}
        tools = fields.get("tools", [])
        if not isinstance(tools, list):
            raise wrong_type("tools", "a list")
        if tools:
            card = self._card_of(incoming.spec.alias)
            if card is not None and not card.tools:
                raise not_able(fields["asked_model"], "tools")
            body["tools"] = [_tool(tool) for tool in tools]
        return self._conversation(incoming, body) if conversation else self._loaded(incoming)


def _tool(given: Any) -> Any:
    """Of the only kind that there is, where it does not say so."""
    return {"type": "function", **given} if isinstance(given, dict) and "function" in given else given


class GenerateTranslation(TextTranslation):
    """`/api/generate`."""

    def fields(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return common_fields.named(common_fields.normal(given), no_model(""), *_SWITCHES, "raw")

    def ask(self, incoming: Incoming) -> Asked | Told:
        fields = incoming.fields
        prompt, suffix = common_fields.text(fields, "prompt"), common_fields.text(fields, "suffix")
        pictures = images(fields.get("images"), "images")
        if not (prompt or suffix):
            return self._loaded(incoming)
        if fields.get("raw") is True:
            if any(fields.get(name) for name in ("system", "template", "context")):
                raise BadRequest("raw mode does not support template, system, or context", param="raw")
            if fields.get("_debug_render_only") is True:
                return Told(as_json(_rendered(self._frame(incoming), {"prompt": prompt})))
            return self._text(incoming, TEXT, {"prompt": prompt})
        if suffix:
            card = self._card_of(incoming.spec.alias)
            if card is not None and not card.infill:
                raise not_able(fields["asked_model"], "insert")
            return self._text(incoming, INFILL, {"input_prefix": prompt, "input_suffix": suffix})
        return self._turn(incoming, prompt, pictures)

    def _turn(self, incoming: Incoming, prompt: str, pictures: list[str]) -> Asked:
        fields = incoming.fields
        turns = [*context_field.unpacked(fields.get("context")), ("user", prompt)]
        if system := common_fields.text(fields, "system"):
            turns = [("system", system), *(turn for turn in turns if turn[0] != "system")]
        conversation = [said(role, content) for role, content in turns[:-1]]
        body = {"messages": [*conversation, said("user", prompt, pictures)]}
        kept = context_field.size_of(turns)
        if kept > context_field.MOST_BYTES:
            return self._conversation(incoming, body)
        return self._conversation(incoming, body, turns=turns)._replace(kept_bytes=kept)

    def _text(self, incoming: Incoming, path: str, body: Fields) -> Asked:
        """llama-server is asked to go on with a text as it is."""
        fields = incoming.fields
        if fields.get("images"):
            raise BadRequest(_NO_IMAGES, param="images")
        common_fields.thinking(fields, self._card_of(incoming.spec.alias))  # is checked, no more
        wanted = options.read(fields.get("options"), self._context(incoming))
        body |= wanted.fields
        if (schema := common_fields.schema(fields)) is not None:
            body["json_schema"] = schema
        if (most := common_fields.logprobs(fields)) is not None:
            body["n_probs"] = max(most, 1)
        may_cut = path == TEXT and fields.get("truncate") is not False
        again = shortening.of_text("prompt") if may_cut else None
        frame = self._frame(incoming, note=wanted.note)
        return self._asked(incoming, body, path, frame, partial(llama_answers.of_text, most or 0), again)
