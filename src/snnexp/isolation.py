"""What belongs to the whole process and is put back after a verb, for other code may be running in the same process.

A state is a pair of functions, one that reads it and one that sets it to what was read. The tables name all that Hydra,
Lightning, PyTorch and this package change on the way.
"""

import io
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf.basecontainer import BaseContainer

State = tuple[Callable[[], Any], Callable[[Any], object]]


@contextmanager
def restored(states: Iterable[State]) -> Iterator[None]:
    """Put the states back, however the block ends."""
    before = [(put, read()) for read, put in states]
    with ExitStack() as stack:
        # of a stack, the last comes first
        for put, value in reversed(before):
            stack.callback(put, value)
        yield


@contextmanager
def isolated(computing: bool = True) -> Iterator[None]:
    """Leave no trace in the process; a decorator of the public verbs.

    Args:
        computing: restore the random states and the flags of PyTorch and NumPy too.
    """
    with warnings.catch_warnings(), restored([*HYDRA, *PROCESS, *(_computing() if computing else ())]):
        yield


def _attribute(owner: Callable[[], Any], name: str) -> State:
    return lambda: getattr(owner(), name, None), lambda value: setattr(owner(), name, value)


def _content(mapping: Callable[[], MutableMapping[Any, Any]]) -> State:
    def put(before: dict[Any, Any]) -> None:
        now = mapping()
        for key in {*now} - {*before}:
            del now[key]
        # os.environ has to convert whatever is written
        now.update({key: value for key, value in before.items() if key not in now or now[key] != value})

    return lambda: {**mapping()}, put


def _if_changed(read: Callable[[], Any], put: Callable[[Any], object]) -> State:
    """Restored only if it changed: setting it has side effects."""
    return read, lambda value: read() == value or put(value)


def _put_source(source: Any) -> None:
    SourcesRegistry.instance().types["file"] = source


RESOLVING: list[State] = [_content(lambda: BaseContainer._resolvers), _content(lambda: os.environ)]
HYDRA: list[State] = [
    _attribute(GlobalHydra.instance, "hydra"),
    _attribute(HydraConfig.instance, "cfg"),
    _attribute(VersionBase.instance, "version_base"),
    # where Hydra has not begun yet, what it will register by itself
    (lambda: SourcesRegistry.instance().types.get("file", FileConfigSource), _put_source),
    *RESOLVING,
]


def _read_loggers() -> list[tuple[logging.Logger, dict[str, Any]]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        (logger, {**vars(logger), "handlers": [*logger.handlers], "filters": [*logger.filters]})
        for logger in loggers
        if isinstance(logger, logging.Logger)
    ]


def _put_loggers(before: list[tuple[logging.Logger, dict[str, Any]]]) -> None:
    for logger, entries in before:
        logger.handlers, logger.filters = entries["handlers"], entries["filters"]
        logger.propagate, logger.disabled = entries["propagate"], entries["disabled"]
        if logger.level != entries["level"]:
            logger.setLevel(entries["level"])


def _put_errors(errors: str | None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=errors)


PROCESS: list[State] = [
    _content(lambda: os.environ),
    (_read_loggers, _put_loggers),
    # with warnings.showwarning, whether logging has them
    _attribute(lambda: logging, "_warnings_showwarning"),
    _if_changed(lambda: getattr(sys.stdout, "errors", None), _put_errors),
]


def cpu_random_states() -> list[State]:
    """The generators of random numbers of a CPU: of Python, PyTorch and NumPy."""
    import numpy as np
    import torch

    return [
        (random.getstate, random.setstate),
        (torch.get_rng_state, torch.set_rng_state),
        (np.random.get_state, np.random.set_state),
    ]


def random_states() -> list[State]:
    """The generators of random numbers, of Python, PyTorch and NumPy."""
    import torch

    def read_cuda() -> list[torch.Tensor] | None:
        begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return torch.cuda.get_rng_state_all() if begun else None

    def put_cuda(state: list[torch.Tensor] | None) -> None:
        if state is None:
            # it begins with the seed of the CPU's, which has been put back
            torch.cuda.manual_seed_all(torch.initial_seed())
        else:
            torch.cuda.set_rng_state_all(state)

    # that of a device may begin with the CPU's
    return [*cpu_random_states(), (read_cuda, put_cuda)]


def _computing() -> list[State]:
    """States of PyTorch and NumPy, which are not imported for a config alone."""
    import torch
    from lightning.pytorch.utilities import rank_zero_only
    from torch.utils.data._utils import signal_handling

    def read_deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def put_deterministic(state: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(state[0], warn_only=state[1])

    def put_child_handler(state: tuple[Any, bool]) -> None:
        # Python lets only the main thread handle signals
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, state[0])
            signal_handling._SIGCHLD_handler_set = state[1]

    return [
        *random_states(),
        _if_changed(torch.get_num_threads, torch.set_num_threads),
        _if_changed(read_deterministic, put_deterministic),
        _attribute(lambda: torch.utils.deterministic, "fill_uninitialized_memory"),
        _attribute(lambda: torch.backends.cudnn, "benchmark"),
        _attribute(lambda: rank_zero_only, "rank"),
        # set by PyTorch with its first data worker, once
        _if_changed(
            lambda: (signal.getsignal(signal.SIGCHLD), signal_handling._SIGCHLD_handler_set), put_child_handler
        ),
    ]
