"""Start ``snnexp`` and its workers by fork from a server, which saves the seconds that imports take.

The server imports all modules. A forked process behaves like a regular one: it is a child of the requesting process and
has its own arguments, environment variables, streams, signal handlers and exit code.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = str(shutil.which("snnexp", path=str(Path(sys.executable).parent)))
WORKER = "from snnexp.sweeps.worker import main; main("
RANK = [sys.executable, "-m", "snnexp.training.rank"]
SCRIPT = "# run in a forked process\n"
"""Start of code after ``python -c`` for which the time of imports does not matter."""
MODULES = ("submitit.local._local", "submitit.core._submit", "torch.distributed.run")
"""Modules whose processes start workers or ranks."""
LAZY = (
    *("PIL.JpegImagePlugin", "jinja2.async_utils", "matplotlib.backends.backend_svg", "rich._emoji_codes"),
    *("optuna.storages._rdb.models", "alembic.command", "pygments.lexers.python", "sqlalchemy.dialects.sqlite"),
    *("snnexp.cli.trained", "snnexp.report.comparison", "snnexp.report.single", "tensorboard.plugins.hparams.api_pb2"),
)
"""Modules that commands import only when they need them."""
START = dict(os.environ)
LATER = re.compile(
    r"SNNEXP_.*|PYTHON(SAFE)?PATH|PATH|TERM|FORCE_COLOR|COLUMNS|COMP_.*|TZ|HOME|SLOW_S|STEP_S|LONG_FROM|CLUSTER|PYTEST_.*"
    r"|TORCH_CPP_LOG_LEVEL|SLURM_.*|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHINDUCTOR_CACHE_DIR|PL_GLOBAL_SEED"
    r"|PYTORCH_NVML_BASED_CUDA_CHECK|CUBLAS_WORKSPACE_CONFIG|PYTHONIOENCODING|OLD_FAULTS|SUBMITIT_.*|TORCHELASTIC_.*"
    r"|(GROUP|ROLE)_.*|TORCH_NCCL_.*|CUDA_VISIBLE_DEVICES"
)
"""Variables that are not read on import. If others differ, a regular process is started."""
CLONE, CLONE_PARENT, CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID = 56, 0x8000, 0x200000, 0x1000000
PR_SET_PDEATHSIG, PR_GET_TID_ADDRESS = 1, 40
"""Constants of Linux on x86-64."""
FORKS = sys.platform == "linux" and os.uname().machine == "x86_64"
LIBC = ctypes.PyDLL(None)
_connected: list[socket.socket] = []


class Popen(subprocess.Popen[Any]):
    """Forks snnexp and workers from the server, and starts other programs as usual."""

    def _execute_child(self, args: Any, executable: Any, *rest: Any) -> None:
        preexec, _, handed, cwd, env, _, _, shell, *pipes = rest[:14]
        env = os.environ if env is None else env
        words = [args] if isinstance(args, str) else [*map(os.fsdecode, args)]
        worker = words[:2] == [sys.executable, "-c"] and words[2].startswith((WORKER, SCRIPT))
        known = words[0] == PROGRAM or worker or words[:3] == RANK or _module(words) is not None
        changed = {name for name in {*env, *START} if env.get(name) != START.get(name)}
        if not FORKS or not known or executable or preexec or handed or shell or not all(map(LATER.fullmatch, changed)):
            super()._execute_child(args, executable, *rest)
            return
        request = {"arguments": words, "cwd": os.path.abspath(cwd or "."), "env": dict(env), "session": rest[19]}
        streams = [default if pipe == -1 else pipe for default, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        try:
            with socket.socket(fileno=os.dup(server().fileno())) as requests:
                socket.send_fds(requests, [json.dumps(request).encode()], streams)
                self.pid = int(requests.recv(16))
        finally:
            self._close_pipe_fds(*pipes)
        self._child_created = True


class Command(Popen):
    """``snnexp`` in a new session, with pipes for its output unless ``streams`` replaces them."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], **streams: Any) -> None:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        super().__init__([PROGRAM, *arguments], cwd=cwd, env=env, text=True, start_new_session=True, **streams)

    def __exit__(self, *error: Any) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(*error)


def run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command and wait for it."""
    with Command(arguments, cwd, env) as process:
        out, err = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def no_sync(handle: Any) -> None:
    """Replacement of ``os.fsync``, which would take a tenth of the time of the tests."""


def simplify_hydra() -> None:
    """Make Hydra map its choices, a fifth of the time of a composition, only for defaults lists with interpolations."""
    from hydra._internal import defaults_list

    build = defaults_list._create_interpolation_map

    def build_if_read(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        return build(overrides, defaults, self_added) if any(each.is_interpolation() for each in defaults) else None

    defaults_list._create_interpolation_map = build_if_read


def server() -> socket.socket:
    """Return the socket of the server. A request is JSON with three file descriptors; the answer is a PID."""
    if not _connected:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            # sockets are not seekable, like pipes and terminals
            process = subprocess.Popen([sys.executable, __file__], env=START, stdin=there, stdout=there, stderr=there)
        _connected.append(here)

        def stop() -> None:
            here.close()
            process.kill()
            process.wait()

        atexit.register(stop)
    return _connected[0]


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a process for each request, and return the request in the forked process."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    streams: list[int] = []
    ranks = False
    while True:
        for number in handlers:
            # signals are meant for the forked processes
            signal.signal(number, signal.SIG_IGN)
        for handle in streams:
            os.close(handle)
        text, streams, _, _ = socket.recv_fds(requests, 2**20, 3)
        if not text:
            os._exit(0)
        if pid := _fork_sibling():
            requests.send(str(pid).encode())
            continue
        requests.close()
        request: dict[str, Any] = json.loads(text)
        if request["session"]:
            os.setsid()
        if not ranks and not _starts_workers(request):
            break
        # workers of a sweep with trainer=ddp start ranks
        ranks = "trainer=ddp" in request["arguments"]
        here, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            requests.close()
            _connected.append(here)
            subprocess.Popen = Popen  # type: ignore[misc]
            break
        # nested server for the workers of this sweep, or the ranks of this run, which dies with the command
        here.close()
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # its output must not be read as an answer of the outer server
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.close(nothing)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
        os.close(handle)
    return request


def _module(words: Sequence[str]) -> str | None:
    """Return the module in MODULES that a command line starts, or None."""
    given = [word for word in words if word != "-u"]
    return given[2] if given[:2] == [sys.executable, "-m"] and given[2:3] and given[2] in MODULES else None


def _starts_workers(request: Mapping[str, Any]) -> bool:
    words = request["arguments"]
    if words[1:2] != ["resume"]:
        # tests that slow a process down count the children of the run
        ranks = "trainer=ddp" in words and "data.kind=slow" not in words
        return "-m" in words or words[-1].startswith(SCRIPT) or ranks
    path = Path(request["cwd"], *words[2:3])
    config = path / "config.yaml"
    return (path / "sweep.json").is_file() or (config.is_file() and "strategy: ddp" in config.read_text())


def _fork_sibling() -> int:
    """Fork a process with the same parent, which can then wait for it."""
    # address where the C library stores the id of the main thread
    thread = ctypes.c_void_p()
    assert LIBC.prctl(PR_GET_TID_ADDRESS, ctypes.byref(thread)) == 0
    flags = CLONE_PARENT | CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | signal.SIGCHLD
    nothing = ctypes.c_long(0)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = LIBC.syscall(CLONE, flags, nothing, nothing, thread, nothing)
    if pid:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid


def run_request(request: Mapping[str, Any]) -> int:
    """Run the requested command."""
    words = request["arguments"]
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    # lightning reads the rank on import
    rank_zero_only.rank = _get_rank() or 0
    first = "" if words[0] == sys.executable else str(Path(PROGRAM).parent)
    safe = [] if "PYTHONSAFEPATH" in os.environ else [first]
    sys.path[:1] = [*safe, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stdout.reconfigure(line_buffering=os.isatty(1), encoding=encoding)  # type: ignore[union-attr]
    if encoding:
        sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
    if words[:3] == RANK:
        return follow(Path(words[3]))
    if module := _module(words):
        sys.argv = words[words.index(module) :]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    if words[0] == sys.executable:
        sys.argv = words[1:2]
        exec(words[2], {"__name__": "__main__"})
        return 0
    sys.argv = words
    return main()


def leave(request: Mapping[str, Any]) -> NoReturn:
    """Run the requested command, and exit like Python but without the slow teardown of modules."""
    try:
        code: Any = run_request(request)
    except SystemExit as end:
        code = end.code
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit(code or 0)


if __name__ == "__main__":
    # must be set before torch is imported, as the command line does
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import torch.utils.tensorboard  # noqa: F401
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    import snnexp.cli.train
    import snnexp.experiment
    import snnexp.report
    import snnexp.sweeps.driver
    import snnexp.sweeps.worker
    from snnexp.cli import main
    from snnexp.training.rank import main as follow

    os.fsync = no_sync
    simplify_hydra()
    for module in LAZY:
        importlib.import_module(module)
    # forked processes share compositions of shipped recipes, and the sources of shipped parts
    recipe = "experiment=regression_sqrt"
    for words in (
        [],
        ["experiment=digits_leaky"],
        [recipe],
        [recipe, "trainer=cpu"],
        [recipe, "trainer=cpu", "logger=jsonl"],
    ):
        snnexp.experiment.compose(words)
    # torch would unregister its operators on exit, a third of the time of a short command
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False
    # garbage collection would copy shared pages
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    leave(serve(socket.socket(fileno=os.dup(0))))
