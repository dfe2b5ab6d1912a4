"""What the servers really did, by the words that each request carries: a token in a write, a number in a read."""

from dataclasses import dataclass, field

Log = tuple[bytes, ...]
"""The tokens of all writes that a value has come from, in their order."""


@dataclass(frozen=True, slots=True)
class Done:
    """A request was carried out."""

    server: str
    epoch: int  # of the shard, as this server knows it: how many promotions its data has seen
    primary: bool
    frame: bytes  # the reply
    log: Log  # of the value, after it
    order: int  # of all that was done, by whomever


@dataclass(slots=True)
class Ledger:
    wrote: dict[bytes, list[Done]] = field(default_factory=dict)  # by token; of what replicas copy nothing
    read: dict[int, list[Done]] = field(default_factory=dict)  # by number
    kept: dict[tuple[str, int], set[bytes]] = field(default_factory=dict)
    """Shard and epoch -> the tokens that its primary had when it was promoted."""
    epochs: dict[str, int] = field(default_factory=dict)  # of each shard now
    count: int = 0
    says: bool = False  # what happens, line by line

    def note(self, who: object, what: object) -> None:
        if self.says:
            print(f"                  {who}: {what}"[:220], flush=True)

    def is_lost(self, shard: str, done: Done) -> bool:
        """Whether a write may be gone: its shard has got another primary since, and that one did not have it."""
        now = self.epochs[shard]
        return any(done.log[-1] not in self.kept[shard, epoch] for epoch in range(done.epoch + 1, now + 1))
