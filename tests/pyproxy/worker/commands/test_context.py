"""What a worker tells its parent, and waits for."""

import pytest

from pyproxy.messages import Script
from pyproxy.scripts import digest_of
from pyproxy.worker.commands import context as module
from tests.pyproxy.worker.commands.stand_ins import worker

TEXT = b"return 1"


async def test_a_script_is_learned_when_the_parent_says_that_all_know_it() -> None:
    with worker() as context:
        context.tell = lambda _: context.script_is_known(digest_of(TEXT))
        await context.cache_script(TEXT)
        assert context.scripts.text(digest_of(TEXT)) == TEXT
        assert not context.sharing


async def test_a_word_of_the_parent_that_is_lost_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_S", 0.01)
    told: list[object] = []
    with worker() as context:
        context.tell = told.append
        await context.cache_script(TEXT)
        monkeypatch.setattr(module, "SHARE_S", 3600.0)
        await context.cache_script(TEXT)
    assert told == [Script(0, TEXT)]
