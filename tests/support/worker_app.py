"""A tiny server on ``gateway.workers``: ``python -m tests.support.worker_app FOLDER WORKERS GRACE_S``.

``FOLDER/ready`` gets the two ports; a stream ends when ``FOLDER/finish`` exists; ``FOLDER/ticks`` grows with each tick.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from aiohttp import web

from gateway.workers import WorkerContext, run
from tests.support.processes import eventually

FOLDER = Path(sys.argv[1])


class App:
    """What one worker serves."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.reloads = 0
        context.on_reload = self.reload

    def reload(self) -> None:
        self.reloads += 1

    async def who(self, request: web.Request) -> web.Response:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        return web.json_response(
            {"pid": os.getpid(), "slot": self.context.slot, "reloads": self.reloads, "port": port},
            headers={"Connection": "close"},
        )

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"{os.getpid()}\n".encode())
        await eventually((FOLDER / "finish").exists, what="finish", within_s=60)
        await response.write(b"end\n")
        return response


async def main(context: WorkerContext) -> None:
    if (FOLDER / "broken").exists():
        raise RuntimeError("broken at start")
    app = App(context)
    application = web.Application()
    application.add_routes([web.get("/who", app.who), web.get("/stream", app.stream)])
    runner = web.AppRunner(application, shutdown_timeout=float(sys.argv[3]))
    await runner.setup()
    for listening in context.sockets:
        await web.SockSite(runner, listening).start()
    await context.stop.wait()
    await runner.cleanup()
    with (FOLDER / "drained").open("a") as file:
        file.write(f"{context.slot}\n")


def listen() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    listening.setblocking(False)
    return listening


def tick() -> None:
    with (FOLDER / "ticks").open("a") as file:
        file.write(".")


def serve() -> int:
    sockets = [listen(), listen()]
    (FOLDER / "ready").write_text(" ".join(str(each.getsockname()[1]) for each in sockets))
    code = run(
        int(sys.argv[2]),
        sockets,
        main,
        grace_s=float(sys.argv[3]),
        tick=tick,
        on_reload=lambda: (FOLDER / "reloaded").touch(),
    )
    with (FOLDER / "ended").open("a") as file:  # by the parent only: a worker must never come here
        file.write(f"{os.getpid()}\n")
    return code


if __name__ == "__main__":
    sys.exit(serve())
