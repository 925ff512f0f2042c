"""Starts ``snnexp`` in processes of its own, without the seconds that imports take.

A server, one for each process of the suite, imports what every command needs, and each command is forked from it. From
there on it is a process like any other, with arguments, variables, streams, signals and an exit code of its own; the
processes that it starts itself import everything anew.
"""

import atexit
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PROGRAM = str(shutil.which("snnexp", path=str(Path(sys.executable).parent)))
START = dict(os.environ)
LATER = re.compile(r"SNNEXP_.*|PYTHONPATH|TERM|COLUMNS|COMP_.*|TZ|HOME|SLOW_S|STEP_S|LONG_FROM|PYTEST_.*")
"""The variables that nothing reads before a command does; with other differences it starts from the beginning."""


class Command(subprocess.Popen[str]):
    """``snnexp`` with these arguments, its output in pipes unless ``streams`` say otherwise."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], **streams: Any) -> None:
        changed = {name for name in {*env, *START} if env.get(name) != START.get(name)}
        self.status = -1 if all(map(LATER.fullmatch, changed)) else None
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        super().__init__([PROGRAM, *arguments], cwd=cwd, env=env, text=True, start_new_session=True, **streams)

    def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
        if self.status is None:
            super()._execute_child(args, executable, *rest)
            return
        cwd, env, pipes = rest[3], rest[4], rest[8:14]
        self.status, told = os.pipe()
        request = json.dumps({"arguments": args, "cwd": str(cwd), "env": dict(env)})
        with open(os.devnull) as nothing:
            own = zip((pipes[0], pipes[3], pipes[5]), (nothing.fileno(), 1, 2), strict=True)
            streams = [default if pipe == -1 else pipe for pipe, default in own]
            socket.send_fds(server(), [request.encode()], [told, *streams])
        os.close(told)
        self._close_pipe_fds(*pipes)
        self.pid = self._read()
        self._child_created = True

    def _read(self) -> int:
        assert self.status is not None
        told = os.read(self.status, 4)
        assert told, f"the server has ended; start {__file__} alone to see why"
        return int.from_bytes(told, "big")

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self.status is None:
            return super()._try_wait(wait_flags)
        if not select.select([self.status], [], [], 0 if wait_flags else None)[0]:
            return 0, 0
        ended = self._read()
        os.close(self.status)
        return self.pid, ended

    def _internal_poll(self, *arguments: Any, **more: Any) -> int | None:
        if self.status is None:
            return super()._internal_poll(*arguments, **more)
        if self.returncode is None:
            pid, ended = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(ended)
        return self.returncode


def run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    with Command(arguments, cwd, env) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@cache
def server() -> socket.socket:
    """Where requests are sent: a message of JSON with the handles of the status and of three streams."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        # streams that cannot seek, as pipes and terminals cannot
        process = subprocess.Popen([sys.executable, __file__], env=START, stdin=there, stdout=there, stderr=there)

    def stop() -> None:
        here.close()
        process.kill()
        process.wait()

    atexit.register(stop)
    return here


def serve() -> None:
    """Fork a process for each request, and return in it."""
    requests = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        text, handles, _, _ = socket.recv_fds(requests, 2**20, 4)
        if not text:
            sys.exit()
        if not os.fork():
            break
        for handle in handles:
            os.close(handle)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told, *streams = handles
    if pid := os.fork():
        # the parent of the command, as a shell is
        for handle in streams:
            os.close(handle)
        _, ended = os.waitpid(pid, 0)
        os.write(told, ended.to_bytes(4, "big"))
        os._exit(0)
    os.setsid()
    os.write(told, os.getpid().to_bytes(4, "big"))
    requests.detach()
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
    for handle in handles:
        os.close(handle)
    asked = json.loads(text)
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    os.chdir(asked["cwd"])
    sys.argv = asked["arguments"]
    sys.path[:1] = [str(Path(PROGRAM).parent), *filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.stdout.reconfigure(line_buffering=os.isatty(1))


if __name__ == "__main__":
    # read when torch is imported, and set by the command line before that
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import torch.utils.tensorboard  # noqa: F401

    import snnexp.experiment
    import snnexp.launch
    import snnexp.report  # noqa: F401
    from snnexp.cli import main

    serve()
    sys.exit(main())
