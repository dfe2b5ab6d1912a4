"""The status over HTTP: a socket that listens and a way to see the present state come in; status.py's answers go out.

It has no state of its own, keeps no connection, and writes nothing to the log. Never in a request's path.
"""

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from pyproxy.control.http.status import ANSWERS, Answer, State

CLOSE_S = 1.0  # for answers that are being written when the proxy ends


@contextlib.asynccontextmanager
async def serving(listener: socket.socket, state: Callable[[], State]) -> AsyncIterator[None]:
    """Answer on this socket until the block ends; then it is closed."""
    app = web.Application()
    for path, answer in ANSWERS.items():
        app.router.add_get(path, _handler(answer, state))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()
        listener.close()


def _handler(
    answer: Callable[[State], Answer], state: Callable[[], State]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_request: web.Request) -> web.Response:
        result = answer(state())
        # a probe that came too late to see the end of a phase must not see it from a cache
        headers = {"Cache-Control": "no-store", **result.headers}
        response = web.json_response(result.body, status=result.status, headers=headers)
        response.force_close()
        return response

    return handle
