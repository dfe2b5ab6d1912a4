from pyproxy.control.health.busy import TAKEN_S, BusyServers
from pyproxy.messages import AtWork, Work

A, B = "127.0.0.1:7001", "127.0.0.1:7002"
DONE = AtWork({})
PATIENCE_S = 30


def work(since: float, taken_at: float | None = None) -> Work:
    """What was sent then. The server's side of the connection had all of it at the same moment, or else then."""
    return Work("s0", since, since + PATIENCE_S, since if taken_at is None else taken_at)


def at_work(*since: float, node: str = A) -> AtWork:
    return AtWork({node: [work(each) for each in since]})


def seen(servers: BusyServers, node: str = A) -> tuple[float, float] | None:
    found = servers.of(node)
    return (found.since, found.until) if found else None


def test_a_server_is_at_work_while_a_worker_says_so() -> None:
    servers = BusyServers()
    servers.update(0, at_work(10))
    assert (seen(servers), seen(servers, B)) == ((10, 40), None)
    assert servers.update(0, DONE) == ["s0"]
    assert seen(servers) is None


def test_a_stretch_begins_with_the_first_of_all_workers_and_goes_on_until_nobody_waits() -> None:
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.update(1, at_work(12))
    assert servers.update(0, DONE) == []
    assert seen(servers) == (10, 40)
    assert servers.update(1, DONE) == ["s0"]
    assert seen(servers) is None


def test_what_an_ended_worker_has_sent_goes_on_until_the_server_answers_somebody() -> None:
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.worker_ended(0)
    assert seen(servers) == (10, 40)
    servers.server_answered(A, 9.5)
    assert seen(servers) is None


def test_each_worker_is_told_what_the_others_have_sent() -> None:
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.update(1, at_work(12))
    servers.update(2, at_work(11, node=B))
    assert servers.others(1) == AtWork({A: [Work("s0", 10, 40)], B: [Work("s0", 11, 41)]})
    assert servers.others(7) == AtWork({A: [Work("s0", 10, 40)], B: [Work("s0", 11, 41)]})
    assert BusyServers().others(0) == DONE


# --- a server that answers somebody else ------------------------------------------------------------------------------


def test_a_server_that_answers_what_it_was_asked_long_after_it_had_a_command_is_not_at_it() -> None:
    """A BLPOP that waits."""
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.server_answered(A, 10 + TAKEN_S + 0.1)
    assert seen(servers) is None
    assert servers.others(1) == DONE


def test_an_answer_to_what_was_asked_before_a_server_must_have_come_to_a_command_ends_nothing() -> None:
    """It may be at the command all the same: it reads its connections in turns."""
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.server_answered(A, 10 + TAKEN_S - 0.1)
    assert seen(servers) == (10, 40)


def test_a_command_that_is_on_its_way_for_long_is_not_over_before_it_has_come() -> None:
    """60 MB, through a slow network: until then the server answers others."""
    servers = BusyServers()
    servers.update(0, AtWork({A: [Work("s0", 10, 40)]}))
    servers.server_answered(A, 18)
    assert seen(servers) == (10, 40)
    servers.update(0, AtWork({A: [work(10, taken_at=19)]}))
    assert seen(servers) == (10, 40)
    servers.server_answered(A, 19 + TAKEN_S + 0.1)
    assert seen(servers) is None


def test_a_command_that_was_sent_since_a_server_answered_is_work_of_its_own() -> None:
    """A client waits with a BLPOP of very many keys, and others do so again and again."""
    servers = BusyServers()
    servers.update(0, at_work(10, 20, 30))
    servers.server_answered(A, 25)
    assert seen(servers) == (30, 60)


def test_who_is_told_of_others_is_told_when_an_answer_has_ended_their_work() -> None:
    told: list[str] = []
    servers = BusyServers(on_ended=told.append)
    servers.update(0, at_work(10))
    servers.server_answered(A, 9.0)
    servers.server_answered(B, 50)
    assert told == []
    servers.server_answered(A, 12)
    servers.server_answered(A, 13)
    assert told == ["s0"]


# --- a server that answers nobody -------------------------------------------------------------------------------------


def test_what_is_sent_to_a_server_that_answers_nobody_is_waited_for_no_longer_than_the_first() -> None:
    servers = BusyServers()
    servers.server_answered(A, 9)
    for since in range(10, 100):
        servers.update(0, at_work(since))
        assert seen(servers) == (10, 40)


def test_a_pause_between_two_commands_gives_no_new_time_to_a_server_that_answers_nobody() -> None:
    """A client that gives up, and asks again."""
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.update(0, DONE)
    servers.update(1, at_work(20))
    assert seen(servers) == (20, 40)


def test_a_server_that_has_answered_since_has_all_the_time_for_the_next_command() -> None:
    servers = BusyServers()
    servers.update(0, at_work(10))
    servers.update(0, DONE)
    servers.server_answered(A, 14)
    servers.update(1, at_work(20))
    assert seen(servers) == (20, 50)
