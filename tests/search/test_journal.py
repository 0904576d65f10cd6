from __future__ import annotations

import contextlib
from pathlib import Path

from edgeattn.search.budget import Accuracy
from edgeattn.search.journal import Journal, journal

JUDGED = Accuracy({"top1": 0.99, "sqnr": 31.5}, {"top1": 0.01}, ("top1 drops by 1 %",))


def interrupted(output: Path, key: str = "same", by: type[BaseException] = KeyboardInterrupt) -> None:
    with contextlib.suppress(by), journal(output, {"key": key}) as kept:
        assert kept.started("good") == ""
        kept.engine("good").write_bytes(b"plan")
        kept.built("good", JUDGED)
        kept.started("unfinished")
        raise by


def test_what_was_built_before_an_interruption_is_known_after_it(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.engine")
    with journal(tmp_path / "m.engine", {"key": "same"}) as kept:
        path, accuracy = kept.known("good") or (Path(), None)
        assert path.read_bytes() == b"plan"
        assert accuracy == JUDGED
        assert kept.known("unfinished") is None
        assert kept.engine("unfinished") != path
    assert not list(tmp_path.iterdir())


def test_another_search_does_not_take_over_what_it_finds(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.engine")
    with journal(tmp_path / "m.engine", {"key": "other"}) as kept:
        assert kept.known("good") is None
        assert not kept.engine("good").exists()


def test_what_ended_the_process_twice_is_not_tried_again(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.engine")
    interrupted(tmp_path / "m.engine")
    with journal(tmp_path / "m.engine", {"key": "same"}) as kept:
        assert kept.started("unfinished") == "it ended the process twice"


def test_a_damaged_journal_is_an_empty_one(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.engine")
    (path,) = tmp_path.glob(".*/journal.json")
    path.write_text('{"key": 3')
    assert Journal(path.parent, {"key": "same"}).known("good") is None


def test_a_failed_search_leaves_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path / "m.engine", by=ValueError)
    assert not list(tmp_path.iterdir())
