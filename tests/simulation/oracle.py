"""Whether the clients were told the truth: each answer against what the servers did, at once and at the end.

reply i belongs to request i      its frame is the one that a server made for this very token or number
-TRYAGAIN, a refusal              the write is done nowhere, then and later
an acknowledged write             was done once; an uncertain one once or never
what a client reads               has in it all its own acknowledged writes, unless the server had to be replaced by
                                  one that had not copied them; and where a write of its own is unresolved, no other
                                  server says that it is not there, and then it is
WAIT                              so many replicas have all writes that this client was told are done
"""

from protocol.scan import elements
from tests.simulation.client import Asked, Client, Read, Write
from tests.simulation.ledger import Done, Ledger
from tests.simulation.server import Server

NOT_DONE = (b"TRYAGAIN", b"EXECABORT", b"READONLY", b"LOADING", b"MASTERDOWN", b"NOREPLICAS", b"MISCONF", b"UNBLOCKED")
NIL = (b"*-1\r\n", b"_\r\n")


class Broken(Exception):
    """A promise was broken; the text says which, and by what."""


def verdict_of(frame: bytes, faulty: bool) -> str:
    """What an error line says of its request."""
    code = frame[1:].split(b" ", 1)[0].rstrip()
    if code == b"UNCERTAIN" or (faulty and frame.startswith(b"-ERR internal error")):
        return "uncertain"
    if code in NOT_DONE:
        return "no"
    raise Broken(f"nobody says this: {frame[:200]!r}")


class Oracle:
    """`servers`: shard -> its servers. `faulty`: faults are made inside the proxy, which may say so."""

    def __init__(self, ledger: Ledger, servers: dict[str, list[Server]], faulty: bool) -> None:
        self.ledger = ledger
        self.servers = servers
        self.faulty = faulty
        self.answers = 0

    def judge(self, client: Client, frame: bytes) -> None:
        """The next reply of a client. Raises Broken."""
        if not client.waiting:
            raise Broken(f"{client} got a reply more than it has asked for: {frame[:100]!r}")
        asked = client.waiting.popleft()
        asked.reply = frame
        self.answers += 1
        self.ledger.note(client, f"{asked.name} {asked.index} is answered {frame[:100]!r}")
        if frame[:1] == b"-" and asked.shape not in ("exact", "map"):
            asked.verdict = verdict_of(frame, self.faulty)
            if asked.name == "wait" and asked.verdict == "uncertain":
                client.forgiven[frame.split()[2].decode()] = asked.index
        else:
            asked.verdict = "done"
            if not self._fits(asked, frame):
                said = f"{frame[:120]!r} is not its answer: {self._of(asked)}"
                raise Broken(f"{client}, {asked.name} {asked.index}: {said}")
        self.check(client, asked)
        if asked.verdict == "done":
            for read in asked.reads:
                self._check_read(client, asked, read, frame)
            if asked.shape == "count" and frame.startswith(b":"):
                self._check_wait(client, asked, int(frame[1:-2]))

    def check(self, client: Client, asked: Asked) -> None:
        """Its writes, by now; asked again at the end. Raises Broken."""
        if asked.reply in NIL:
            asked.verdict = "no"
        times = [len(self.ledger.wrote.get(write.token, ())) for write in asked.writes]
        least, most = {"done": (1, 1), "no": (0, 0)}.get(asked.verdict, (0, 1))
        if any(not least <= each <= most for each in times):
            said = asked.reply[:160] if asked.reply else "nothing"
            raise Broken(f"{client}, {asked.name} {asked.index}: done {times} times, and was told {said!r}")
        if asked.name == "exec" and len(set(times)) > 1:
            raise Broken(f"{client}: a part of the block {asked.index} was done")

    def _of(self, asked: Asked) -> list[list[bytes]]:
        return [[done.frame[:60] for done in self._done(part)] for part in asked.parts] or [[asked.expects]]

    def _done(self, part: Write | Read) -> list[Done]:
        if isinstance(part, Write):
            return self.ledger.wrote.get(part.token, [])
        return self.ledger.read.get(part.number, [])

    def _fits(self, asked: Asked, frame: bytes) -> bool:
        match asked.shape:
            case "one":
                return any(done.frame == frame for done in self._done(asked.parts[0]))
            case "all" | "ok or no":
                return frame == b"+OK\r\n"
            case "exact":
                return frame == asked.expects
            case "queued":
                return frame == b"+QUEUED\r\n"
            case "map":
                return frame[:1] in b"*%"
            case "count":
                return frame[:1] == b":" or frame.startswith(b"*2\r\n:")
            case "values":
                return frame[:1] == b"*"
        if asked.shape == "block or nil" and frame in NIL:
            return True
        each = elements(frame, True) if frame[:1] == b"*" else []
        return len(each) == len(asked.parts) and all(
            any(done.frame == one for done in self._done(part)) for part, one in zip(asked.parts, each, strict=True)
        )

    def _check_read(self, client: Client, asked: Asked, read: Read, frame: bytes) -> None:
        """What it sees of the client's own writes."""
        found = [done for done in self._done(read) if asked.shape != "one" or done.frame == frame]
        if not found:
            return
        seen = found[-1]
        for write in client.writes.get(read.place, ()):
            if write.asked.index > asked.index:
                break
            if write.asked is asked and asked.parts.index(write) > asked.parts.index(read):
                break
            done = self.ledger.wrote.get(write.token)
            who = f"{client}, {asked.name} {asked.index} of {read.place[1].decode()} at {seen.server}"
            if write.token in seen.log:
                missed = client.missed.get(write.token)
                if missed is not None and done and done[0].server != missed:
                    raise Broken(f"{who}: has {write.token!r}, which was not there when {missed} was asked")
            elif write.asked.verdict == "done" and done and seen.primary:
                if not self.ledger.is_lost(write.shard, done[0]):
                    raise Broken(f"{who}: lacks {write.token!r}, which {done[0].server} has acknowledged")
            elif (
                write.asked.verdict == "uncertain"
                and len({each.server for each in found}) == 1
                and (done is None or done[0].order > seen.order)  # else a replica is late, as any may be
            ):
                client.missed.setdefault(write.token, seen.server)

    def _check_wait(self, client: Client, asked: Asked, count: int) -> None:
        for writes in client.writes.values():
            for write in writes:
                done = self.ledger.wrote.get(write.token)
                if write.asked.index > asked.index or write.asked.verdict != "done" or not done:
                    continue
                if write.asked.index < client.forgiven.get(write.shard, 0) or self.ledger.is_lost(write.shard, done[0]):
                    continue
                copies = [server for server in self.servers[write.shard] if server.master is not None]
                have = sum(write.token in log.log for server in copies if (log := server.data.get(write.place)))
                if have < count:
                    raise Broken(f"{client}: WAIT says {count}, and {have} replicas have {write.token!r}")
