"""What a worker tells its parent, and waits for."""

import pytest

from pyproxy.messages import Script
from pyproxy.scripts import digest_of
from pyproxy.worker.commands import context as module
from tests.pyproxy.worker.commands.asker import worker

TEXT = b"return 1"


async def test_a_script_is_learned_when_the_parent_says_that_all_know_it() -> None:
    with worker() as here:
        here.tell = lambda _: here.script_is_known(digest_of(TEXT))
        await here.learn_script(TEXT)
        assert here.scripts.text(digest_of(TEXT)) == TEXT
        assert not here.sharing


async def test_a_word_of_the_parent_that_is_lost_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_S", 0.01)
    told: list[object] = []
    with worker() as here:
        here.tell = told.append
        await here.learn_script(TEXT)
        monkeypatch.setattr(module, "SHARE_S", 3600.0)
        await here.learn_script(TEXT)
    assert told == [Script(0, TEXT)]
