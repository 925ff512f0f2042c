"""Restores process-wide state after a public function, because other code may run in the same process.

A state is a pair of functions: one reads it, one sets it. The tables list everything that Hydra, Lightning, PyTorch and
this package change.
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
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf.basecontainer import BaseContainer

State = tuple[Callable[[], Any], Callable[[Any], object]]


@contextmanager
def restored(states: Iterable[State]) -> Iterator[None]:
    """Restore the states when the block exits."""
    saved = [(write, read()) for read, write in states]
    with ExitStack() as stack:
        # an ExitStack calls in reverse order
        for write, value in reversed(saved):
            stack.callback(write, value)
        yield


@contextmanager
def isolated(computing: bool = True) -> Iterator[None]:
    """Restore process-wide state; used as a decorator of public functions.

    Args:
        computing: also restore random states and flags of PyTorch and NumPy.
    """
    with warnings.catch_warnings(), restored([*HYDRA, *PROCESS, *(_computing() if computing else ())]):
        yield


def _attribute(owner: Callable[[], Any], name: str) -> State:
    return lambda: getattr(owner(), name, None), lambda value: setattr(owner(), name, value)


def _content(mapping: Callable[[], MutableMapping[Any, Any]]) -> State:
    def write(saved: dict[Any, Any]) -> None:
        current = mapping()
        for key in {*current} - {*saved}:
            del current[key]
        # only differences: writes to os.environ are converted
        current.update({key: value for key, value in saved.items() if key not in current or current[key] != value})

    return lambda: {**mapping()}, write


def _if_changed(read: Callable[[], Any], write: Callable[[Any], object]) -> State:
    """Return a state that is written only if it changed, because writing has side effects."""
    return read, lambda value: read() == value or write(value)


SOURCES = {"file": FileConfigSource, "pkg": ImportlibResourcesConfigSource}
"""The classes that Hydra registers at its first use, of those that this package replaces."""
RESOLVING: list[State] = [_content(lambda: BaseContainer._resolvers), _content(lambda: os.environ)]
HYDRA: list[State] = [
    _attribute(GlobalHydra.instance, "hydra"),
    _attribute(HydraConfig.instance, "cfg"),
    _attribute(VersionBase.instance, "version_base"),
    (
        lambda: {**SOURCES, **SourcesRegistry.instance().types},
        lambda saved: SourcesRegistry.instance().types.update(saved),
    ),
    *RESOLVING,
]


def _read_loggers() -> list[tuple[logging.Logger, dict[str, Any]]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        (logger, {**vars(logger), "handlers": [*logger.handlers], "filters": [*logger.filters]})
        for logger in loggers
        if isinstance(logger, logging.Logger)
    ]


def _write_loggers(saved: list[tuple[logging.Logger, dict[str, Any]]]) -> None:
    for logger, entries in saved:
        logger.handlers, logger.filters = entries["handlers"], entries["filters"]
        logger.propagate, logger.disabled = entries["propagate"], entries["disabled"]
        if logger.level != entries["level"]:
            logger.setLevel(entries["level"])


def _write_errors(errors: str | None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=errors)


PROCESS: list[State] = [
    _content(lambda: os.environ),
    (_read_loggers, _write_loggers),
    # with warnings.showwarning, the state of logging.captureWarnings
    _attribute(lambda: logging, "_warnings_showwarning"),
    _if_changed(lambda: getattr(sys.stdout, "errors", None), _write_errors),
]


def cpu_random_states() -> list[State]:
    """Return the states of the CPU random generators of Python, PyTorch and NumPy."""
    import numpy as np
    import torch

    return [
        (random.getstate, random.setstate),
        (torch.get_rng_state, torch.set_rng_state),
        (np.random.get_state, np.random.set_state),
    ]


def random_states() -> list[State]:
    """Return the states of the random generators of Python, PyTorch (all devices) and NumPy."""
    import torch

    def read_cuda() -> list[torch.Tensor] | None:
        initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return torch.cuda.get_rng_state_all() if initialized else None

    def write_cuda(state: list[torch.Tensor] | None) -> None:
        if state is None:
            # PyTorch seeds CUDA from the CPU generator, which was restored before
            torch.cuda.manual_seed_all(torch.initial_seed())
        else:
            torch.cuda.set_rng_state_all(state)

    # CUDA after the CPU, because it may take the CPU seed
    return [*cpu_random_states(), (read_cuda, write_cuda)]


def _computing() -> list[State]:
    """Return states of PyTorch and NumPy, which composing a config does not import."""
    import torch
    from lightning.pytorch.utilities import rank_zero_only
    from torch.utils.data._utils import signal_handling

    def read_deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def write_deterministic(state: tuple[bool, bool]) -> None:
        torch.use_deterministic_algorithms(state[0], warn_only=state[1])

    def write_child_handler(state: tuple[Any, bool]) -> None:
        # only the main thread may set signal handlers
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, state[0])
            signal_handling._SIGCHLD_handler_set = state[1]

    return [
        *random_states(),
        _if_changed(torch.get_num_threads, torch.set_num_threads),
        _if_changed(read_deterministic, write_deterministic),
        _attribute(lambda: torch.utils.deterministic, "fill_uninitialized_memory"),
        _attribute(lambda: torch.backends.cudnn, "benchmark"),
        _attribute(lambda: rank_zero_only, "rank"),
        # set by PyTorch when it starts the first data worker
        _if_changed(
            lambda: (signal.getsignal(signal.SIGCHLD), signal_handling._SIGCHLD_handler_set), write_child_handler
        ),
    ]
