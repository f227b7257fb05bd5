"""A real annotation service in a thread of this process, with whatever engine and access a test wants."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from configs.annotation_schema import AccessConfig, ServiceConfig
from llm_server.rubrics.rubric import Rubric
from llm_server.service.judge import Judge, build_judge
from llm_server.service.service import serve

WAIT_S = 20.0


class RunningService:
    """Serving once it is made; `close` ends it."""

    def __init__(self, rubric: Rubric, engine: Any = None, access: AccessConfig | None = None, **settings: Any) -> None:
        config = ServiceConfig(**{"engine": "scripted", "script": "good=0.9", "store": "memory"} | settings)
        address: Future[str] = Future()
        self._served = threading.Event()

        def build(config: ServiceConfig, rubric: Rubric) -> Judge:
            return build_judge(config, rubric) if engine is None else Judge(engine, rubric, None, config)

        async def session() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            on_serving: Callable[[Judge], None] = lambda judge: self._served.set()  # noqa: E731
            given = {} if access is None else {"access": access}
            await serve(
                config, rubric, build, on_listening=address.set_result, on_serving=on_serving, stop=self._stop, **given
            )

        def run() -> None:
            try:
                asyncio.run(session())
            except BaseException as error:
                if not address.done():
                    address.set_exception(error)

        self._thread = threading.Thread(
            target=run, daemon=True
        )  # a test that fails must not keep the others from ending
        self._thread.start()
        self.address = address.result(WAIT_S)
        assert self._served.wait(WAIT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
