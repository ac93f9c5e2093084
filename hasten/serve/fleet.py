"""The served bundles by name; each may be replaced while requests are in flight."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hasten.errors import HastenError
from hasten.serve.metrics import Metrics
from hasten.serve.service import Service

log = logging.getLogger(__name__)

Opening = Callable[[str, Path], Service]
"""Loads the bundle in a folder, under a name."""


class Fleet(Mapping[str, Service]):
    """Services by the names of their models, in the order in which they were given.

    Args:
        folders: the bundles' folders by name.
        opening: loads one.
        metrics: follow the service that answers.
        drain_s: how long a bundle that was replaced may still answer.
    """

    def __init__(
        self, folders: Mapping[str, Path], opening: Opening, metrics: Metrics, drain_s: float
    ) -> None:
        self._folders = dict(folders)
        self._opening = opening
        self._metrics = metrics
        self._drain_s = drain_s
        self._turn = asyncio.Lock()
        self._services = {name: opening(name, folder) for name, folder in folders.items()}

    def __getitem__(self, name: str) -> Service:
        return self._services[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._services)

    def __len__(self) -> int:
        return len(self._services)

    async def reload(self) -> None:
        """Let what is in the folders now take over, where it is another bundle than before.

        A bundle is loaded and proved by its probes beside the one that answers. Requests in flight
        end with the bundle with which they began. A bundle that cannot be loaded changes nothing.
        """
        async with self._turn:
            for name in self._folders:
                await self._reload(name)

    async def _reload(self, name: str) -> None:
        old = self._services[name]
        try:
            fresh = await asyncio.to_thread(self._opening, name, self._folders[name])
        except (HastenError, OSError) as error:
            log.error("%s stays as it was: %s", name, error)  # noqa: TRY400 - it is no surprise
            self._metrics.replaced(name, "refused")
            return
        if fresh.predictor.bundle.digest == old.predictor.bundle.digest:
            log.info("%s is the same bundle as before", name)
            await asyncio.to_thread(fresh.close)
            return
        await fresh.canary()
        if not fresh.ready:
            log.error("%s stays as it was: the new bundle does not answer", name)
            self._metrics.replaced(name, "refused")
            await asyncio.to_thread(fresh.close)
            return
        self._services[name] = fresh
        self._metrics.serving(name, fresh)
        self._metrics.replaced(name, "done")
        log.info("%s has been replaced", name)
        await old.drain(self._drain_s)
