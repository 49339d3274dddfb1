"""The words of errors that end an accepted request: time-outs, crashes."""

from __future__ import annotations

from app.core.config import SystemConfig
from app.domain.errors import ModelCrashed, QueueTimeout, UpstreamTimeout
from app.models.instance import ModelInstance


def queue_timeout(instance: ModelInstance, limits: SystemConfig) -> QueueTimeout:
    return QueueTimeout(
        f"no place on {instance.alias} within {limits.queue_timeout_sec} s; try again later, "
        "send a higher X-Request-Priority, or raise system.queue_timeout_sec",
        retry_after_s=instance.queue.expected_wait_s(),
    )


def upstream_timeout(instance: ModelInstance) -> UpstreamTimeout:
    return UpstreamTimeout(
        f"llama-server for {instance.alias} has not moved for {instance.spec.request_timeout_s:g} s; look at "
        "its log, or raise request_timeout_sec"
    )


def crashed(instance: ModelInstance) -> ModelCrashed:
    return ModelCrashed(f"llama-server for {instance.alias} ended while it answered; send the request again")
