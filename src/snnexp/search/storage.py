"""Storage of a study: a database that several processes may share. Passwords are removed from all messages."""

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
"""Timeouts by backend: of the file lock in SQLite, and of a connection to PostgreSQL."""
ATTEMPTS = 5
"""Attempts to create the tables: of processes that start together, only one succeeds at first."""


def parse(url: str) -> URL:
    """Parse the URL of a database.

    Raises:
        ConfigError: the URL is invalid. The message does not repeat it, since it may contain a password.
    """
    example = "such as sqlite:///study.db or postgresql://user@host/name"
    try:
        parsed = sqlalchemy.make_url(url)
        # the driver that snnexp[postgres] installs
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{KEY}: not the URL of a database, {example}") from error
    except ImportError as error:
        raise ConfigError(f"{KEY}: {parsed.drivername} needs a package that is not installed: {error}") from error
    if any("password" in option for option in parsed.query):
        raise ConfigError(
            f"{KEY}: a password in the options would not be hidden; use postgresql://user:password@host/name"
        )
    return parsed


def without_password(url: str) -> str:
    """Return a URL without password and options: ``postgresql://user@host/name``."""
    parsed = parse(url)
    public = URL.create(
        parsed.get_backend_name(), parsed.username, host=parsed.host, port=parsed.port, database=parsed.database
    )
    return public.render_as_string()


def open_storage(url: str, stay_connected: bool = False) -> RDBStorage:
    """Open the storage at a URL, and create its tables if they do not exist.

    Args:
        url: URL of a database.
        stay_connected: keep connections open until :func:`close`. Servers limit the number of connections, to 100 by
            default in PostgreSQL.

    Raises:
        ConfigError: the database is unreachable or unusable.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parsed = parse(url)
    backend = parsed.get_backend_name()
    try:
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        extra = "; pip install 'snnexp[postgres]'" if backend == "postgresql" else ""
        raise ConfigError(f"{KEY}: {backend} needs a package that is not installed: {error}{extra}") from error
    # Optuna passes the URL to str.format, and a path or password may contain braces
    text = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    options: dict[str, Any] = {"connect_args": WAIT_S.get(backend, {})}
    with translated_errors(url):
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
    """Lock SQLite at the start of a transaction, not at its first write, when earlier reads may be stale."""
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def disable_implicit_begin(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Convert database errors to :class:`ConfigError` without the password."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        original = cause.orig if isinstance(cause, DBAPIError) else cause
        reason = one_line(str(original or error).strip().partition("\n")[0])
        if password := parse(url).password:
            reason = reason.replace(str(password), "***")
        raise ConfigError(f"{KEY}: {without_password(url)} cannot be used: {reason}") from error
