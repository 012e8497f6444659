"""Which event loops the adapter tests run on, and what starts programs in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from solvisor.process import native

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that say ``STARTERS = "both"`` run with the compiled starter and with ``Popen``."""
    if getattr(metafunc.module, "STARTERS", "any") == "both":
        metafunc.parametrize("starter", ["native", "popen"], indirect=True)


@pytest.fixture(autouse=True)
def starter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts the programs of this test; whatever works here unless it matters."""
    match getattr(request, "param", "any"):
        case "popen":
            monkeypatch.setattr(native, "LIBRARY", "/nowhere")
        case "native" if not native.Starter().works:
            pytest.skip("the starter was not compiled")
