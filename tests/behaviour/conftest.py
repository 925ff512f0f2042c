"""The fixtures of the tests of behaviour."""

import faulthandler
from collections.abc import Iterator

import pytest
from shell import shell, snnexp  # noqa: F401


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
