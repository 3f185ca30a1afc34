from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.client import Client
from tests.engine.listener import SECONDS, Listener
from tests.models import tiny_llama
from tqchat.api.asked import Defaults
from tqchat.api.desk import Ask
from tqchat.api.options import Limits, Options
from tqchat.api.server import ApiServer
from tqchat.engine.commands import LoadModel, Sampling
from tqchat.engine.events import ModelInfo, ModelReady
from tqchat.engine.requests.options import RequestOptions
from tqchat.engine.worker import Engine
from tqchat.paths import HOME_VARIABLE, locate

Start = Callable[..., ApiServer]
MODEL = ModelInfo("tiny", "someone/tiny", "0123", "llama", 2, 1000, 512, "cpu")


def options(**changes: object) -> Options:
    limits = changes.pop("limits", Limits())
    return Options(lambda: Defaults(Sampling(max_tokens=8), "turbo4"), port=0, limits=limits, **changes)  # type: ignore[arg-type]


@contextmanager
def serving(model: Path, home: Path) -> Iterator[ApiServer]:
    """A server with the model in a folder, which keeps no caches."""
    heard = Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        paths = locate()
        paths.ensure()
    engine = Engine(heard, paths=paths, requests=RequestOptions(store=False))
    engine.start()
    engine.submit(LoadModel(str(model)))
    info = heard.next(ModelReady).info
    server = ApiServer(engine.ask, lambda: info, options())
    server.start()
    yield server
    server.stop()
    engine.shutdown(SECONDS)


@pytest.fixture(scope="package")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server with a tiny model, for all tests of this folder."""
    model = tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    with serving(model, tmp_path_factory.mktemp("api")) as server:
        yield server


@pytest.fixture
def client(api: ApiServer) -> Client:
    return Client.of(api)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers over something that answers in the engine's place."""
    servers: list[ApiServer] = []

    def started(ask: Ask, **changes: object) -> ApiServer:
        servers.append(ApiServer(ask, lambda: MODEL, options(**changes)))
        servers[-1].start()
        return servers[-1]

    yield started
    for server in servers:
        server.stop()
