"""What tests of the pipeline share."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edgeattn.backends.base import Session
from tests.cameras import mean_session


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    """A session of `mean_engine` for batches of 1 to 4."""
    with mean_session() as opened:
        yield opened


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """Fail where a test leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before
