"""The cards of all models, read beside the event loop and kept until a file is another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread

from app.domain.file_identity import FileIdentity
from app.domain.model_spec import ModelSpec
from app.gguf.digest import digest
from app.gguf.header import GgufError, read_header
from app.gguf.model_card import FileFacts, ModelCard, card_of

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 2.0
"""For files that cannot be read, as on a disk that sleeps: what was read before is told then."""


class _Source(NamedTuple):
    path: Path
    file: FileIdentity | None
    projector: Path | None
    projector_file: FileIdentity | None
    template: str | None


class Cards:
    """By alias. A model whose file cannot be read has none."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[_Source, ModelCard | None]] = {}
        self._one = anyio.CapacityLimiter(1)

    def known(self, alias: str) -> ModelCard | None:
        """As it was read last."""
        read = self._read.get(alias)
        return None if read is None else read[1]

    async def of(self, specs: Mapping[str, ModelSpec]) -> dict[str, ModelCard]:
        with anyio.move_on_after(LONGEST_WAIT_S):
            await self.read(specs)
        return {alias: card for alias in specs if (card := self.known(alias)) is not None}

    async def read(self, specs: Mapping[str, ModelSpec]) -> None:
        """Those whose files are others than before."""
        await anyio.to_thread.run_sync(self._refresh, dict(specs), abandon_on_cancel=True, limiter=self._one)

    def _refresh(self, specs: Mapping[str, ModelSpec]) -> None:
        for alias, spec in specs.items():
            source, known = _source(spec), self._read.get(alias)
            if known is None or known[0] != source:
                self._read[alias] = source, _card(source)


def _source(spec: ModelSpec) -> _Source:
    projector = Path(spec.params.mmproj) if spec.params.mmproj else None
    return _Source(
        spec.path,
        FileIdentity.at(spec.path),
        projector,
        FileIdentity.at(projector) if projector is not None else None,
        spec.params.chat_template,
    )


def _card(source: _Source) -> ModelCard | None:
    try:
        projector = read_header(source.projector) if source.projector is not None else None
        header = read_header(source.path)
        card = card_of(header, projector, source.template)
        modified_ns = source.file.mtime_ns if source.file is not None else 0
        return replace(card, file=FileFacts(modified_ns, digest(header.parts)))
    except (GgufError, OSError) as error:
        logger.debug("%s tells nothing: %s", source.path, error)
        return None
