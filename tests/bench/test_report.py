"""What a report may say: nothing that was not measured, and ratios of one round only."""

import pytest

from bench.measure import IdleCost, LoadFailed, Memory, Sample, parse_csv
from bench.report import PeerFacts, Run, Spread, ratio, results, spread, summary, verdict
from bench.scenarios import choose, names

COLUMNS = ("avg_latency_ms", "min_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "max_latency_ms")
HEADER = ",".join(f'"{column}"' for column in ("test", "rps", *COLUMNS))


def sample(peer: str, number: int, cpu_us: float | None, scenario: str = "get-p64") -> Sample:
    return Sample(scenario, peer, number, 1000, 50_000.0, 1.0, 2.0, cpu_us, 0.5, None)


def run(*samples: Sample, idle: tuple[IdleCost, ...] = ()) -> Run:
    peers = [PeerFacts(name, "1.0", f"{name} -c CONFIG", "listen 1") for name in ("pyproxy", "nutcracker")]
    return Run(samples, idle, peers, {"haproxy": "no haproxy on PATH"}, [("commit", "abc")], ["redis-benchmark -n N"])


def line_of(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(beginning))


def test_a_spread_is_the_median_the_least_and_the_greatest() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_a_spread_of_nothing_is_nothing() -> None:
    assert spread([]) is None


def test_ratios_are_taken_within_a_round() -> None:
    # a slow second round slows both: the medians of the samples would give 2 / 6
    samples = [sample("pyproxy", 1, 1.0), sample("pyproxy", 2, 3.0), sample("nutcracker", 2, 6.0)]
    samples += [sample("nutcracker", 1, 2.0)]
    assert ratio(samples, "get-p64", "pyproxy", lambda s: s.cpu_us) == Spread(0.5, 0.5, 0.5)


def test_a_round_without_the_baseline_gives_no_ratio() -> None:
    samples = [sample("pyproxy", 1, 1.0), sample("nutcracker", 2, 2.0)]
    assert ratio(samples, "get-p64", "pyproxy", lambda s: s.cpu_us) is None


def test_a_peer_without_a_proxy_process_gives_no_ratio() -> None:
    samples = [sample("direct", 1, None), sample("nutcracker", 1, 2.0)]
    assert ratio(samples, "get-p64", "direct", lambda s: s.cpu_us) is None


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (None, "not measured"),
        (Spread(0.30, 0.28, 0.35), "reached"),
        (Spread(0.30, 0.28, 0.36), "reached by the median, not in every round"),
        (Spread(0.42, 0.40, 0.44), "missed by 0.07 (20% over)"),
    ],
)
def test_a_verdict_says_reached_or_by_how_much_not(got: Spread | None, said: str) -> None:
    assert verdict(0.35, got) == said


def test_the_results_name_each_bar_that_was_not_measured() -> None:
    text = results(run(sample("pyproxy", 1, 1.0), sample("nutcracker", 1, 4.0)))
    assert line_of(text, "| GET, 32 B, pipeline 64").endswith("| 0.25 (0.25..0.25) | 0.35 | reached |")
    assert line_of(text, "| SET, 32 B, pipeline 64").endswith("| - | 0.35 | not measured |")
    assert line_of(text, "| memory per idle client").endswith("| - | 16 KiB | not measured |")


def test_the_memory_of_idle_clients_is_its_growth_per_client() -> None:
    cost = IdleCost("pyproxy", 5000, Memory(30_000, 20_000), Memory(130_000, 120_000))
    row = line_of(results(run(idle=(cost,))), "| memory per idle client")
    assert row.endswith("| 20.0 KiB at 5,000 | 16 KiB | missed by 4.00 (25% over) |")


def test_a_peer_that_was_left_out_is_named_with_the_reason() -> None:
    assert "- **haproxy** was left out: no haproxy on PATH." in results(run(sample("pyproxy", 1, 1.0)))
    assert "haproxy left out: no haproxy on PATH" in summary(run(sample("pyproxy", 1, 1.0)))


def test_a_row_of_redis_benchmark_is_read_behind_its_warnings() -> None:
    row = '"GET","52631.58","0.060","0.016","0.047","0.079","0.111","4.3"'
    assert parse_csv(f"WARNING: Could not fetch server CONFIG\n{HEADER}\n{row}\n") == (52631.58, 0.047, 0.111)


@pytest.mark.parametrize("output", ["", HEADER, "Could not connect to Redis"], ids=["nothing", "no row", "no header"])
def test_a_run_without_figures_is_a_failure(output: str) -> None:
    with pytest.raises(LoadFailed, match="expected one row"):
        parse_csv(output)


def test_no_pattern_chooses_all_scenarios() -> None:
    assert choose([]) == names()


def test_patterns_choose_in_the_order_of_measuring() -> None:
    assert choose(["get-p1", "set-p*4"]) == ["set-p64", "get-p1"]


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="got set-p17"):
        choose(["get-p1", "set-p17"])
