"""Token counts as each API tells them: cached tokens are part of the prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.domain.events import Usage
from app.proxy.token_usage import UsageScanner, usage_of

MESSAGES = {"cache_read_input_tokens": 24, "input_tokens": 7, "output_tokens": 57}
RESPONSES = {"input_tokens": 31, "output_tokens": 57, "input_tokens_details": {"cached_tokens": 24}}
CHAT = {"prompt_tokens": 31, "completion_tokens": 57, "prompt_tokens_details": {"cached_tokens": 24}}


@pytest.mark.parametrize("usage", [MESSAGES, RESPONSES, CHAT], ids=["messages", "responses", "chat"])
def test_plain_answers_are_counted_alike(usage: dict[str, Any]) -> None:
    body = json.dumps({"id": "x", "usage": usage}, separators=(",", ":")).encode()
    assert usage_of(body) == Usage(prompt=31, generated=57, cached=24)


def test_a_stream_of_messages_tells_its_prompt_first_and_its_answer_last() -> None:
    scanner = UsageScanner()
    events = [
        b'data: {"message":{"usage":{"cache_read_input_tokens":24,"input_tokens":7,"output_tokens":0}}}\n\n',
        *[b'data: {"delta":{"text":"x"}}\n\n'] * 20,
        b'data: {"type":"message_delta","usage":{"output_tokens":57}}\n\n',
        b'data: {"type":"message_stop"}\n\n',
    ]
    scanner.start(events[0])
    for event in events:
        scanner.feed(event)
    assert scanner.usage() == Usage(prompt=31, generated=57, cached=24)
