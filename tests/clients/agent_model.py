"""A model for agents: it reads prompts of any length, and its answers are known.

An answer is a walk from token to token: what comes next depends on the last token alone. Where a walk begins
is chosen by the chat template, so that asked to run a command it calls the tool that it is offered for that,
and tells in words what it was asked otherwise, or when the tool has been run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType, TokenType

COMMAND, RESULT = "expr 41000200 + 30", "41000230"
ASK_TO_RUN = "run the command"
"""Said by the user it means: call a tool, once."""

SAYS = "<|says|>"
ANSWER = ("Paris", ".")
END = "<|im_end|>"
TOOLS: Mapping[str, str] = {"Bash": "command", "bash": "command", "exec_command": "cmd"}
"""Of agents, that run commands, and in which argument."""

_WIDTH, _INNER = 64, 64
_OTHER = _WIDTH - 1
"""The state of all tokens that are in no walk."""


def template() -> str:
    calls = "".join(
        f"{{%- if tool.function.name == '{name}' %}}{{%- set ns.mark = '{_mark(name)}' %}}{{%- endif %}}"
        for name in TOOLS
    )
    return _TEMPLATE.replace("SAYS", SAYS).replace("ASK_TO_RUN", ASK_TO_RUN).replace("CALLS", calls)


_TEMPLATE = r"""
{%- set ns = namespace(mark='SAYS', wants=false) %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\n' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.content %}
        {{- message.content }}
    {%- endif %}
    {%- for tc in message.tool_calls or [] %}
        {{- '<tool_call>\n{"name": "' + tc.function.name + '", "arguments": ' }}
        {{- tc.function.arguments | tojson }}
        {{- '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
    {%- if message.role == 'user' and 'ASK_TO_RUN' in message.content | string %}
        {%- set ns.wants = true %}
    {%- elif message.role == 'tool' %}
        {%- set ns.wants = false %}
    {%- endif %}
{%- endfor %}
{%- if ns.wants %}
    {%- for tool in tools or [] %}CALLS{%- endfor %}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' + ns.mark }}
{%- endif %}
"""


def _mark(tool: str) -> str:
    return f"<|calls-{tool}|>"


def _call(tool: str) -> str:
    return f'<tool_call>\n{{"name": "{tool}", "arguments": {{"{TOOLS[tool]}": "{COMMAND}"}}}}\n</tool_call>'


def make_agent_model(path: Path, words_of: Path, *, context: int = 131072) -> Path:
    """With the vocabulary of another file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("agent")
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH)
    writer.add_chat_template(template())
    words = _add_vocabulary(writer, words_of)
    for name, tensor in _tensors(words).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, words_of: Path) -> list[str]:
    """That of the file, and the tokens of the walks that it lacks."""
    words: list[str] = []
    more = {SAYS: TokenType.CONTROL}
    for tool in TOOLS:
        more |= {_mark(tool): TokenType.CONTROL, _call(tool): TokenType.USER_DEFINED}
    for key, field in GGUFReader(words_of).fields.items():
        if not key.startswith("tokenizer.ggml."):
            continue
        value: Any = field.contents()
        if key.endswith(".tokens"):
            value = words = [*value, *more]
        elif key.endswith(".token_type"):
            value = [*value, *more.values()]
        if field.types[0] is GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, field.types[0])
    writer.add_vocab_size(len(words))
    return words


def _tensors(words: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    number = {word: place for place, word in enumerate(words)}
    entries, states = np.zeros((len(words), _WIDTH), np.float16), iter(range(_WIDTH))
    exits = np.zeros((len(words), _WIDTH), np.float16)
    entries[:, _OTHER] = 1
    exits[number[END], _OTHER] = 8
    for walk in ((SAYS, *ANSWER, END), *((_mark(tool), _call(tool), END) for tool in TOOLS)):
        for word, following in pairwise(walk):
            state = next(states)
            entries[number[word]] = 0
            entries[number[word], state] = 1
            exits[number[following], state] = 8
    nothing = np.zeros((_WIDTH, _WIDTH), np.float16)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    norms = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    return {
        "token_embd.weight": entries,
        "output.weight": exits,
        **{f"blk.0.{name}.weight": nothing for name in names},
        **{f"{name}.weight": np.ones(_WIDTH, np.float32) for name in norms},
    }
