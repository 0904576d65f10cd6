from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from edgeattn.camera.mailbox import Channel, Gatherer

HOUR = 3600.0


@given(st.lists(st.booleans()), st.integers(1, 3))
def test_a_lossy_channel_gives_the_newest_in_order_and_counts_the_rest(writes: list[bool], size: int) -> None:
    channel: Channel[int] = Channel(size, lossy=True)
    model: list[int] = []
    dropped = 0
    for number, write in enumerate(writes):
        if write:
            lost = channel.put(number)
            model.append(number)
            assert lost == max(0, len(model) - size)
            dropped += lost
            del model[:-size]
        elif model:
            assert channel.get() == model.pop(0)
    assert len(channel) == len(model)


def test_a_lossless_channel_gives_everything_in_order_to_a_slow_reader() -> None:
    channel: Channel[int] = Channel(2)

    def write() -> None:
        for number in range(200):
            assert channel.put(number) == 0
            assert len(channel) <= 2
        channel.close()

    writer = threading.Thread(target=write)
    writer.start()
    got = list(iter(channel.get, None))
    writer.join()
    assert got == list(range(200))
    assert channel.over


def test_closing_wakes_a_writer_without_room_and_a_reader_without_items() -> None:
    full: Channel[int] = Channel(1)
    full.put(0)
    empty: Channel[int] = Channel(1)
    results: list[object] = []
    waiting = [
        threading.Thread(target=lambda: results.append(full.put(1))),
        threading.Thread(target=lambda: results.append(empty.get())),
    ]
    for thread in waiting:
        thread.start()
    full.close()
    empty.close()
    for thread in waiting:
        thread.join()
    assert sorted(map(str, results)) == ["0", "None"]
    assert full.get() == 0
    assert full.get() is None


def test_what_waits_can_be_discarded() -> None:
    channel: Channel[int] = Channel(3)
    channel.put(0)
    channel.close(discard=True)
    assert channel.over
    assert channel.put(1) == 0
    assert channel.get() is None


def channels(count: int, *, lossy: bool = True) -> list[Channel[str]]:
    changed = threading.Condition()
    return [Channel(1, lossy=lossy, changed=changed) for _ in range(count)]


def test_a_batch_has_one_item_of_each_channel_and_comes_once_all_have_one() -> None:
    first, second, third = several = channels(3)
    first.put("a")
    third.put("c")
    threading.Timer(0.02, second.put, "b").start()
    assert sorted(Gatherer(several, HOUR, 3).gather()) == [(0, "a"), (1, "b"), (2, "c")]


def test_while_it_waits_newer_items_take_the_place_of_older_ones() -> None:
    first, second = several = channels(2)
    first.put("old")
    threading.Timer(0.02, lambda: (first.put("new"), second.put("b"))).start()
    assert sorted(Gatherer(several, HOUR, 2).gather()) == [(0, "new"), (1, "b")]


def test_a_channel_that_stands_still_delays_the_others_once_and_is_welcome_back() -> None:
    first, second = several = channels(2)
    gatherer = Gatherer(several, 0.05, 2)
    began = time.monotonic()
    for name in ("a", "b", "c"):
        first.put(name)
        assert gatherer.gather() == [(0, name)]
    assert 0.05 <= time.monotonic() - began < 0.1
    first.put("d")
    second.put("e")
    assert len(gatherer.gather()) == 2


def test_a_batch_smaller_than_the_channels_goes_round() -> None:
    several = channels(3)
    gatherer = Gatherer(several, HOUR, 2)
    taken: list[int] = []
    for _ in range(6):
        for channel in several:
            channel.put("x")
        taken += [index for index, _ in gatherer.gather()]
    assert [taken.count(index) for index in range(3)] == [4, 4, 4]


def test_it_ends_when_all_channels_are_over_and_does_not_wait_for_those_that_are() -> None:
    first, second = several = channels(2, lossy=False)
    second.put("last")
    second.close()
    first.close()
    gatherer = Gatherer(several, HOUR, 2)
    assert gatherer.gather() == [(1, "last")]
    assert gatherer.gather() == []
