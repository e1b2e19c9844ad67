"""The engine in a thread of its own, with asyncio streams on the other side."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve_paged.core.errors import EngineDead, InvalidRequest
from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.threads import use_threads


@dataclass(eq=False, slots=True)
class _Stream:
    """The asyncio end of one request. All but `request` and `loop` is touched in the loop's thread only."""

    request: Request
    loop: asyncio.AbstractEventLoop
    num_open: int  # choices that have not finished
    deltas: list[ChoiceDelta] = field(default_factory=list)
    error: Exception | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def push(self, item: list[ChoiceDelta] | Exception) -> None:
        if isinstance(item, Exception):
            self.error = item
        else:
            self.deltas.extend(item)
        self.arrived.set()

    async def take(self) -> list[ChoiceDelta]:
        """Wait for what is new; an error is raised once every delta before it was taken."""
        await self.arrived.wait()
        deltas, self.deltas = self.deltas, []
        if not deltas and self.error is not None:
            self.num_open = 0
            raise self.error
        if self.error is None:
            self.arrived.clear()
        self.num_open -= sum(delta.finish_reason is not None for delta in deltas)
        return deltas


@dataclass(frozen=True, slots=True)
class _Add:
    stream: _Stream


@dataclass(frozen=True, slots=True)
class _Abort:
    stream: _Stream


@dataclass(frozen=True, slots=True)
class _Call:
    """A function to run in the engine's thread."""

    function: Callable[[Engine], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]

    def run(self, engine: Engine) -> None:
        try:
            result = self.function(engine)
        except Exception as error:  # noqa: BLE001  (it is the caller's)
            self.end(error)
        else:
            self._tell(self.answer.set_result, result)

    def end(self, error: Exception) -> None:
        self._tell(self.answer.set_exception, error)

    def _tell(self, setter: Callable[[Any], None], value: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self.loop.call_soon_threadsafe(lambda: None if self.answer.done() else setter(value))


Result = TypeVar("Result")


class AsyncEngine:
    """Runs `Engine.step` in a thread while there is work; streams deltas to any number of asyncio callers.

    A step that raises ends every open stream with `EngineDead` and the engine takes no more requests: its owner
    replaces it (see `check_health`).
    """

    def __init__(
        self, engine: Engine, *, step_timeout_s: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`step_timeout_s`: a step that takes longer has hung."""
        self._engine = engine
        self._step_timeout_s = step_timeout_s
        self._clock = clock
        self._step_began: float | None = None  # None: between two steps
        self._streams: dict[str, _Stream] = {}  # open requests; touched by the engine thread only
        self._wake = threading.Condition()  # guards what follows, until the thread has ended
        self._commands: deque[_Add | _Abort | _Call] = deque()
        self._closing = False
        self._death: Exception | None = None
        self._stats = engine.stats()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, request: Request) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Stream a request's deltas, all that are ready at a time, until each choice has finished.

        Closing the generator aborts the request. Raises `InvalidRequest` before the first delta, `EngineDead` when
        the engine fails.
        """
        num_choices = len(request.output_token_ids) or request.params.n
        stream = _Stream(request, asyncio.get_running_loop(), num_choices)
        self._submit(_Add(stream))
        try:
            while stream.num_open:
                yield await stream.take()
        finally:
            if stream.num_open:
                with suppress(EngineDead):  # a dead engine has ended it already
                    self._submit(_Abort(stream))

    async def call(self, function: Callable[[Engine], Result]) -> Result:
        """Run a short function in the engine's thread, between two steps; what it returns or raises.

        Raises `EngineDead` when the engine has stopped.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, loop, loop.create_future())
        self._submit(call)
        result: Result = await call.answer
        return result

    def stats(self) -> EngineStats:
        """The engine's state after its latest step."""
        return self._stats

    def check_health(self) -> None:
        """Raise `EngineDead` if the engine has failed, was closed, or hangs."""
        began = self._step_began
        if began is not None and self._clock() - began > self._step_timeout_s:
            raise EngineDead(f"a step of the engine has taken more than {self._step_timeout_s} s")
        if self._death is not None:
            raise EngineDead(f"the engine has stopped: {self._death!r}") from self._death

    def close(self) -> None:
        """Stop the engine's thread; open streams end with `EngineDead`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _submit(self, command: _Add | _Abort | _Call) -> None:
        with self._wake:
            self.check_health()
            self._commands.append(command)
            self._wake.notify()

    def _run(self) -> None:
        try:
            use_threads(self._engine.num_threads)
            while self._apply_commands():
                deltas = self._step() if self._engine.has_unfinished() else []
                self._stats = self._engine.stats()  # first: whoever has seen a delta sees its statistics
                self._deliver(deltas)
            self._die(EngineDead("it was closed"))
        except Exception as error:  # noqa: BLE001  (the thread's end: every open stream is told)
            self._die(error)

    def _step(self) -> list[ChoiceDelta]:
        self._step_began = self._clock()
        try:
            return self._engine.step()
        finally:
            self._step_began = None

    def _apply_commands(self) -> bool:
        """Do what callers asked for; sleep while there is nothing to do. False: time to stop."""
        with self._wake:
            while not (self._commands or self._closing or self._engine.has_unfinished()):
                self._wake.wait()
            if self._closing:
                return False
            num_commands = len(self._commands)
        for _ in range(num_commands):
            command = self._commands[0]
            match command:
                case _Add():
                    self._add(command.stream)
                case _Abort():
                    self._abort(command.stream)
                case _Call():
                    command.run(self._engine)
            self._commands.popleft()  # only now: what raises is still there to be told (see `_die`)
        return True

    def _add(self, stream: _Stream) -> None:
        try:
            self._engine.add(stream.request)
        except InvalidRequest as refused:  # a bad request concerns its caller alone
            self._send({stream: refused})
        else:
            self._streams[stream.request.request_id] = stream

    def _abort(self, stream: _Stream) -> None:
        request_id = stream.request.request_id
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            self._engine.abort(request_id)

    def _deliver(self, deltas: list[ChoiceDelta]) -> None:
        news: dict[_Stream, list[ChoiceDelta]] = {}
        for delta in deltas:
            news.setdefault(self._streams[delta.request_id], []).append(delta)
        for stream in news:
            if not self._engine.is_open(stream.request.request_id):
                del self._streams[stream.request.request_id]
        self._send(news)

    def _die(self, death: Exception) -> None:
        with self._wake:
            self._death = death
            waiting = [command.stream for command in self._commands if isinstance(command, _Add)]
            calls = [command for command in self._commands if isinstance(command, _Call)]
            self._commands.clear()
        for call in calls:
            call.end(EngineDead(f"the engine has stopped: {death!r}"))
        self._send(
            {stream: EngineDead(f"the engine has stopped: {death!r}") for stream in (*self._streams.values(), *waiting)}
        )

    def _send(self, news: Mapping[_Stream, list[ChoiceDelta] | Exception]) -> None:
        """Hand items to their streams, waking each event loop once: a wake-up costs a system call."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Stream]] = {}
        for stream in news:
            by_loop.setdefault(stream.loop, []).append(stream)
        for loop, streams in by_loop.items():
            try:
                loop.call_soon_threadsafe(_push_all, [(stream, news[stream]) for stream in streams])
            except RuntimeError:  # the loop was closed with requests open: nobody listens any more
                for stream in streams:
                    self._abort(stream)


def _push_all(news: list[tuple[_Stream, list[ChoiceDelta] | Exception]]) -> None:
    for stream, item in news:
        stream.push(item)
