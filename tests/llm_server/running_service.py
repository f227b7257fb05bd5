"""A real annotation service in a thread of this process, with any engine and access settings."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from configs.annotation_schema import AccessConfig, ServiceConfig
from llm_server.rubrics.rubric import Rubric
from llm_server.service.judge import Judge, build_judge
from llm_server.service.service import serve

WAIT_S = 20.0


class RunningService:
    """Serving once it is made, unless `load` holds the judge back or `build` replaces it; `close` ends it."""

    def __init__(
        self,
        rubric: Rubric | Sequence[Rubric],
        engine: Any = None,
        access: AccessConfig | None = None,
        load: threading.Event | None = None,
        build: Callable[[], Judge] | None = None,
        **settings: Any,
    ) -> None:
        config = ServiceConfig(**{"engine": "scripted", "script": "good=0.9", "store": "memory"} | settings)
        address: Future[str] = Future()
        self.engine, self.served = engine, threading.Event()
        self.ended: Future[bool] = Future()

        rubrics = [rubric] if isinstance(rubric, Rubric) else rubric

        def build_when_allowed() -> Judge:
            assert load is None or load.wait(WAIT_S)
            if build is not None:
                return build()
            return build_judge(config, rubrics) if engine is None else Judge(engine, rubrics, None, config)

        def on_serving(judge: Judge) -> None:
            self.judge = judge
            self.served.set()

        async def session() -> bool:
            self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
            given = {} if access is None else {"access": access}
            listening: dict[str, Any] = {"on_listening": address.set_result, "on_serving": on_serving}
            return await serve(config, build_when_allowed, stop=self.stop, **listening, **given)

        def run() -> None:
            try:
                self.ended.set_result(asyncio.run(session()))
            except BaseException as error:
                for future in (address, self.ended):
                    if not future.done():
                        future.set_exception(error)

        # A daemon: a test that fails must not keep the others from ending.
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self.address = address.result(WAIT_S)
        if load is None and build is None:
            assert self.served.wait(WAIT_S)

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
