"""Jobs of rq; its workers import them by name."""


def double(number: int) -> int:
    return 2 * number


def fail() -> None:
    raise ValueError("it fails")
