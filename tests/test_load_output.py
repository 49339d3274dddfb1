"""What a load tells about itself, from real lines."""

from __future__ import annotations

import json
from pathlib import Path

from app.llama.load_output import Buffer, LoadLog

LOG = Path(__file__).parent / "data" / "logs" / "load_ready.txt"


def state(stages: list[str], current: str, value: float) -> str:
    payload = {"stages": stages, "current": current, "value": value}
    return "cmd_child_to_router:state:" + json.dumps({"state": "loading", "payload": payload})


def test_a_real_load_is_read_to_its_end() -> None:
    log = LoadLog()
    for line in LOG.read_text().splitlines():
        log.feed(line)
    assert (log.state, log.progress, log.stage) == ("ready", 1.0, "text_model")
    assert log.projected_mb == {"host": 1}
    assert (log.offloaded, log.n_layers) == (0, 3)
    assert log.buffers == [
        Buffer("AMX", "model", 0.14),
        Buffer("CPU_Mapped", "model", 0.21),
        Buffer("CPU", "output", 0.0),
        Buffer("CPU", "kv", 0.25),
        Buffer("CPU", "compute", 1.51),
    ]


def test_nothing_is_known_before_it_is_said() -> None:
    log = LoadLog()
    log.feed("0.00.007.403 I load: 0 unused tokens")
    assert (log.state, log.progress, log.stage, log.projected_mb) == (None, None, None, {})


def test_where_no_progress_is_told_the_stages_are_those_of_the_log() -> None:
    log = LoadLog()
    mute = [line for line in LOG.read_text().splitlines() if "cmd_child_to_router" not in line]
    stages = [log.stage for line in mute if log.feed(line)]
    assert list(dict.fromkeys(stages)) == [None, "weights", "context", "warm-up"]
    assert (log.state, log.progress) == (None, None)


def test_what_was_seen_to_be_read_counts_until_it_speaks_for_itself() -> None:
    log = LoadLog()
    assert log.measured(0.5)
    assert not log.measured(0.4)  # pages that were dropped again
    log.feed("0.1 I load_tensors: loading model tensors, this can take a while...")
    assert (log.progress, log.stage) == (0.5, "weights")
    assert log.feed(state(["text_model"], "text_model", 0.1))
    assert (log.progress, log.stage) == (0.1, "text_model")
    assert not log.measured(0.9)
    log.feed("0.1 I llama_context: constructing llama_context")
    assert (log.progress, log.stage) == (0.1, "text_model")


def test_the_device_projection_is_read() -> None:
    log = LoadLog()
    line = "projected to use 4711 MiB of device memory vs. 24000 MiB of free device memory"
    assert log.feed(f"0.1 I common_params_fit_impl: {line}")
    assert log.projected_mb == {"device": 4711}


def test_recurrent_and_device_buffers_are_read() -> None:
    log = LoadLog()
    log.feed("0.1 I llama_memory_recurrent:      CUDA0 RS buffer size =    12.50 MiB")
    log.feed("0.1 I load_tensors:        CUDA0 model buffer size =  4095.05 MiB")
    assert log.buffers == [Buffer("CUDA0", "rs", 12.5), Buffer("CUDA0", "model", 4095.05)]


def test_the_stages_share_the_progress() -> None:
    log, stages = LoadLog(), ["text_model", "mmproj_model"]
    assert log.feed(state(stages, "text_model", 0.5))
    assert (log.progress, log.stage) == (0.25, "text_model")
    assert log.feed(state(stages, "mmproj_model", 0.5))
    assert (log.progress, log.stage) == (0.75, "mmproj_model")


def test_progress_never_goes_back() -> None:
    log = LoadLog()
    log.feed(state(["text_model"], "text_model", 0.6))
    log.feed(state(["text_model"], "text_model", 0.4))
    assert log.progress == 0.6


def test_the_same_again_is_no_change() -> None:
    log = LoadLog()
    assert log.feed(state(["text_model"], "text_model", 0.6))
    assert not log.feed(state(["text_model"], "text_model", 0.6))


def test_a_message_in_the_middle_of_a_log_line_is_found() -> None:
    log = LoadLog()
    assert log.feed("0.00.1 I half a li" + state(["text_model"], "text_model", 0.3) + " rest")
    assert log.progress == 0.3


def test_a_protocol_that_has_changed_is_ignored() -> None:
    log = LoadLog()
    prefix = "cmd_child_to_router:state:"
    for text in ["", "nonsense", "[]", "{}", '{"state":7}', '{"state":"loading","payload":{"value":0.5}}']:
        log.feed(prefix + text)
    log.feed(prefix + '{"state":"loading","payload":{"stages":[],"current":"x","value":0.5}}')
    assert (log.progress, log.stage) == (None, None)
