"""Where a study is kept: a database by its URL, safe for several processes, whose password stays unsaid."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from snnexp.errors import ConfigError
from snnexp.text import one_line

KEY = "hydra.sweeper.storage"
WAIT_S = {"sqlite": {"timeout": 60}, "postgresql": {"connect_timeout": 10}}
"""How long another process may hold the lock of a file, and a server may take to answer."""
ATTEMPTS = 5
"""Of making the tables: processes that start together make them at the same time, and all but one fail."""


def parse(url: str) -> URL:
    """A database by its URL.

    Raises:
        ConfigError: it is none; the sentence leaves out what was given, which may hold a password.
    """
    example = "such as sqlite:///study.db or postgresql://user@host/name"
    try:
        parsed = sqlalchemy.make_url(url)
        # the driver that snnexp comes with
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{KEY}: not the URL of a database, {example}") from error
    except ImportError as error:
        raise ConfigError(f"{KEY}: {parsed.drivername} needs a package that is not installed: {error}") from error
    if any("password" in option for option in parsed.query):
        raise ConfigError(f"{KEY}: a password in its options would be seen; write postgresql://user:password@host/name")
    return parsed


def shown(url: str) -> str:
    """A URL for others to read, without password and options: ``postgresql://user@host/name``."""
    parsed = parse(url)
    kept = URL.create(
        parsed.get_backend_name(), parsed.username, host=parsed.host, port=parsed.port, database=parsed.database
    )
    return kept.render_as_string()


def open_storage(url: str, stay_connected: bool = False) -> RDBStorage:
    """The storage at a URL, whose tables are made where there are none.

    Args:
        url: of a database.
        stay_connected: whether connections are kept until :func:`close`; a server has room for some hundred.

    Raises:
        ConfigError: it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parsed = parse(url)
    backend = parsed.get_backend_name()
    try:
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        extra = "; pip install 'snnexp[postgres]'" if backend == "postgresql" else ""
        raise ConfigError(f"{KEY}: {backend} needs a package that is not installed: {error}{extra}") from error
    # Optuna fills in braces, which a path or password may hold
    text = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    options: dict[str, Any] = {"connect_args": WAIT_S.get(backend, {})}
    with reached(url):
        sqlalchemy.create_engine(parsed, poolclass=NullPool, **options).connect().close()
        storage = _with_tables(text, {"poolclass": NullPool, **options})
        if stay_connected:
            storage = RDBStorage(text, engine_kwargs={"pool_pre_ping": True, **options})
        if backend == "sqlite":
            _lock_whole_transactions(storage.engine)
    return storage


def close(storage: RDBStorage) -> None:
    """Close the connections of a storage."""
    storage.remove_session()
    storage.engine.dispose()


def _with_tables(text: str, options: dict[str, Any]) -> RDBStorage:
    for attempt in range(1, ATTEMPTS):
        try:
            return RDBStorage(text, engine_kwargs={**options})
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
            time.sleep(0.2 * attempt)
    return RDBStorage(text, engine_kwargs={**options})


def _lock_whole_transactions(engine: sqlalchemy.Engine) -> None:
    """SQLite locks when a transaction first writes: what it has read before may be outdated by then."""
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_begin_to_us(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def reached(url: str) -> Iterator[None]:
    """What a database refuses becomes a :class:`ConfigError` that does not hold its password."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        told = cause.orig if isinstance(cause, DBAPIError) else cause
        reason = one_line(str(told or error).strip().partition("\n")[0])
        if password := parse(url).password:
            reason = reason.replace(str(password), "***")
        raise ConfigError(f"{KEY}: {shown(url)} cannot be used: {reason}") from error
