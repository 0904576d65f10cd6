"""What stands between two threads: a bounded queue, which either waits for its reader or keeps what is newest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """A queue of at most `size` items. A `lossy` one never blocks its writer: the oldest makes room for the newest.

    A lossy one of size 1 is the mailbox of a live source. Channels that are waited for together share `changed`.
    """

    def __init__(self, size: int = 1, *, lossy: bool = False, changed: threading.Condition | None = None) -> None:
        self.changed = changed or threading.Condition()
        self.size, self.lossy = size, lossy
        self._items: deque[Item] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def over(self) -> bool:
        """Whether it is closed and empty."""
        return self._closed and not self._items

    def put(self, item: Item) -> int:
        """Add an item, which a closed channel forgets; returns how many were dropped for it."""
        with self.changed:
            while not self.lossy and len(self._items) >= self.size and not self._closed:
                self.changed.wait()
            if self._closed:
                return 0
            dropped = len(self._items) - self.size + 1
            if dropped > 0:
                self._items.popleft()
            self._items.append(item)
            self.changed.notify_all()
            return max(dropped, 0)

    def get(self) -> Item | None:
        """The oldest item, as soon as there is one; None at the end."""
        with self.changed:
            while not self._items and not self._closed:
                self.changed.wait()
            return self.take() if self._items else None

    def take(self) -> Item:
        """The oldest item, which must be there; the caller holds `changed`."""
        item = self._items.popleft()
        self.changed.notify_all()
        return item

    def close(self, *, discard: bool = False) -> None:
        """Take no more items; those that wait are still given out, unless they are discarded."""
        with self.changed:
            self._closed = True
            if discard:
                self._items.clear()
            self.changed.notify_all()


class Gatherer(Generic[Item]):
    """Takes one item from each of several channels at a time, without waiting long for those that are late.

    It waits for the first item as long as it takes, then at most `wait` seconds for the channels that had one the time
    before: a source that stands still delays the others once. At most `most` are taken, in turn.
    """

    def __init__(self, channels: Sequence[Channel[Item]], wait: float, most: int) -> None:
        self._channels, self._wait, self._most = channels, wait, most
        self._changed = channels[0].changed
        self._turn = list(range(len(channels)))  # those that waited longest come first
        self._expected = set(self._turn)

    def gather(self) -> list[tuple[int, Item]]:
        """The number of each channel that had an item, and the item; nothing at the end of all of them."""
        with self._changed:
            while not self._ready() and not all(channel.over for channel in self._channels):
                self._changed.wait()
            deadline = time.monotonic() + self._wait
            while self._lacking() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            chosen = self._ready()[: self._most]
            self._expected = set(self._ready())
            self._turn = [index for index in self._turn if index not in chosen] + chosen
            return [(index, self._channels[index].take()) for index in chosen]

    def _ready(self) -> list[int]:
        return [index for index in self._turn if len(self._channels[index])]

    def _lacking(self) -> bool:
        ready = self._ready()
        if not ready or len(ready) >= self._most:
            return False
        return any(index not in ready and not self._channels[index].over for index in self._expected)
