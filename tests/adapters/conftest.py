"""Which event loops the adapter tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """The stock loop; for modules that say ``LOOPS = "both"`` or ``"uvloop"`` (that of the daemon) as they say.

    Where there is no uvloop, it is the stock loop for all.
    """
    loops = getattr(item.module, "LOOPS", "stock") if isinstance(item, pytest.Function) else "stock"
    stock: dict[str, LoopFactory] = {"stock": asyncio.new_event_loop}
    if loops == "stock":
        return stock
    try:
        import uvloop
    except ImportError:
        return stock
    fast: dict[str, LoopFactory] = {"uvloop": uvloop.new_event_loop}
    return fast if loops == "uvloop" else stock | fast
