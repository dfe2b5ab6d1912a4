"""A history from a seed: in what it is played, and its steps."""

from random import Random

from tests.simulation.setting import Setting
from tests.simulation.steps import ACTIONS, Step


def draw(seed: int) -> tuple[Setting, list[Step]]:
    rng = Random(seed)
    small = rng.random() < 0.5
    setting = Setting(
        reads=rng.choice(("primary", "primary", "primary", "prefer-replica")),
        hold=rng.choice(("auto", "hold", "reject")),
        high=rng.choice((500, 4000)) if small else 65536,
        window=rng.choice((300, 3000)) if small else 1 << 20,
        congested_at=rng.choice((1000, 20000)) if small else 8 << 20,
        faulty=rng.random() < 0.15,
        waits=rng.choice((1, 1, 1, 20)),
    )
    names = list(ACTIONS)
    # each history has its own mood: some things happen often in it, some never
    weights = [ACTIONS[name][0] * rng.choice((0, 1, 1, 1, 3)) for name in names]
    for name in ("open", "ask", "flow", "time"):
        weights[names.index(name)] = max(weights[names.index(name)], ACTIONS[name][0])
    count = rng.choice((20, 40, 80, 120))
    words = rng.choices(names, weights, k=count)
    return setting, [Step("open", 0, rng.randrange(1 << 16))] + [
        Step(word, rng.randrange(1 << 16), rng.randrange(1 << 16)) for word in words
    ]
