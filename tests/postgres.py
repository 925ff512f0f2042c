"""A temporary PostgreSQL server with a password, on a free port of localhost."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "s3cret/p@ss"
USER = "searcher"


def program(name: str) -> str | None:
    """Return the path of a PostgreSQL program; on Debian it is not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@contextmanager
def server() -> Iterator[str]:
    """Start a server; yield the URL of its empty database."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    # PostgreSQL refuses to run as root, and other users cannot access pytest's folders
    nobody = pwd.getpwnam("nobody")
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="snnexp-postgres-"))
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    if other:
        for path in (folder, secret):
            shutil.chown(path, nobody.pw_uid, nobody.pw_gid)

    def call(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=60, **other)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    try:
        call(initdb, "-D", str(data), "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")
        call(pg_ctl, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://{USER}:{PASSWORD.replace('/', '%2F').replace('@', '%40')}@127.0.0.1:{port}/postgres"
        finally:
            call(pg_ctl, "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
