"""All faults: what each is called, stands on, and may show."""

from __future__ import annotations

from bench.failover import aws, faults
from bench.failover.rig import Needs
from bench.failover.trial import Expect, Fault

HOLD = {"on_promotion": "hold"}
DOWN = Expect(gap_s=4.0)  # 3 s until it counts as down, and 1 s
SILENT = Expect(gap_s=4.0, silent=True)

FAULTS = [
    Fault("kill", "kill -9 of the primary", faults.kill, expect=DOWN),
    Fault("stop-2s", "SIGSTOP of the primary for 2 s", faults.stop_briefly, expect=Expect(promoted=False, silent=True)),
    Fault("stop-60s", "SIGSTOP of the primary for 60 s after the promotion", faults.stop_long, expect=SILENT),
    Fault(
        "cut-proxy",
        "silent cut between the proxy and the primary",
        faults.cut_clients,
        Needs(hops="primary", cut="clients"),
        Expect(promoted=False, silent=True),
    ),
    Fault(
        "cut-replicas",
        "silent cut between the primary and its replicas",
        faults.cut_replicas,
        Needs(hops="primary", cut="replicas"),
        Expect(promoted=False),
    ),
    Fault(
        "cut-kill",
        "the same, and kill -9 of the primary 1 s later",
        faults.cut_and_kill,
        Needs(hops="primary", cut="replicas"),
        Expect(loses=True, gap_s=4.0),
    ),
    Fault("demoted", "an operator made another server the primary", faults.demote),
    Fault("misconf", "the primary cannot write its disk (MISCONF)", faults.misconf),
    Fault("planned", "pyproxy promote", faults.planned, expect=Expect(planned=True, gap_s=0.3)),
    Fault(
        "candidate",
        "the candidate dies when it is told to take over; the third is left alone, so nothing is fenced",
        faults.candidate_dies,
        Needs(hops="replicas", fenced=False),
        Expect(reads=False),  # reads go to the candidate
    ),
    Fault(
        "parent-dies",
        "the parent is killed after REPLICAOF, and restarted",
        faults.parent_dies,
        Needs(hops="replicas"),
        Expect(proxy_dies=True),
    ),
    Fault("deciders", "no Sentinel answers for 15 s", faults.deciders_away, Needs({"promoter": "sentinel"})),
    Fault("parent-sleeps", "the parent is stopped for 30 s before it would act; another acts", faults.parent_sleeps),
    Fault("old-data", "the old primary comes back as a primary with its old data", faults.old_returns, expect=DOWN),
    Fault(
        "empty",
        "the primary comes back empty after 0.5 s",
        faults.returns_empty,
        expect=Expect(promoted=None, wiped=True, reads=False),  # its replicas may be copying it
    ),
    Fault(
        "all-die",
        "both replicas die, then the primary",
        faults.all_die,
        Needs(fenced=False),
        Expect(promoted=False, reads=False),
    ),
    Fault("overflow", "kill -9, and 5,000 writers more", faults.overflow, Needs(HOLD)),
    Fault("leaves", "kill -9; a client with a held write leaves", faults.leaves_while_held, Needs(HOLD)),
    Fault("flap", "kill -9 of the primary, and 5 s later of the next one", faults.flap),
]

AWS = {"promoter": "elasticache"}
TWENTIETH = [
    Fault("aws-kill", "kill -9 of the primary, AWS promotes when asked", aws.kill, Needs(AWS)),
    Fault("aws-lost", "the same, and the answer of AWS is lost", aws.answer_lost, Needs(AWS)),
    Fault("aws-throttled", "the same, and AWS refuses five calls (Throttling)", aws.throttled, Needs(AWS)),
    Fault("aws-modifying", "the same, while the group is being modified for 40 s", aws.modifying, Needs(AWS)),
    Fault("aws-automatic", "the same, with automatic failover: AWS promotes by itself", aws.automatic, Needs(AWS)),
    Fault("aws-other", "the same, and somebody else has another replica promoted", aws.other_asks, Needs(AWS)),
    Fault(
        "aws-closes",
        "AWS makes a replica of the primary, which closes the connection at a write",
        aws.closes,
        Needs(AWS, hops="primary"),
    ),
    Fault("aws-late", "kill -9, and AWS names the old primary for 20 s more", aws.named_late, Needs(AWS)),
]

BESIDE = [
    Fault("control", "nothing", faults.peace, expect=Expect(promoted=False, planned=True)),
    Fault(
        "nutcracker",
        "kill -9 of the primary, nutcracker in place of the proxy",
        faults.kill_for_good,
        Needs(peer="nutcracker"),
        Expect(promoted=None, reads=False),
    ),
    Fault("kill-x3", "kill -9 of the primary, three proxies, one promotes", faults.kill, Needs(proxies=3), DOWN),
    Fault(
        "cut-x3",
        "silent cut of the primary, three proxies",
        faults.cut_off,
        Needs(proxies=3, hops="primary"),
        SILENT,
    ),
    Fault("kill-sentinel", "kill -9 of the primary, Sentinels promote", faults.kill, Needs({"promoter": "sentinel"})),
    Fault("kill-sentinel-x3", "the same, three proxies", faults.kill, Needs({"promoter": "sentinel"}, proxies=3)),
    Fault(
        "cut-sentinel-x3",
        "silent cut of the primary, Sentinels, three proxies",
        faults.cut_off,
        Needs({"promoter": "sentinel"}, proxies=3, hops="primary"),
        Expect(silent=True),
    ),
    Fault("aws-kill-x3", "kill -9 of the primary, three proxies", aws.kill_of_three, Needs(AWS, proxies=3)),
    Fault(
        "aws-cut-x3",
        "silent cut of the primary, three proxies",
        faults.cut_off,
        Needs(AWS, proxies=3, hops="primary"),
        Expect(silent=True),
    ),
]

ALL = [*FAULTS, *TWENTIETH, *BESIDE]
