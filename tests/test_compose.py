"""docker-compose.yml and Dockerfile, as far as they can be proved without an engine: no image is built here."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from pyproxy.config import Config
from pyproxy.fleet import HOST, Process, ask, find_backend, reserve_port, wait_until

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SHARDS = 10
SERVER_PORT = 6379  # where a server's container listens

Service = dict[str, Any]
"""A service as `docker compose config` gives it, anchors and short forms resolved."""


def compose(*arguments: str) -> str:
    command = [str(BIN / "docker-compose"), "-f", str(ROOT / "docker-compose.yml"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    found: dict[str, Service] = json.loads(compose("config", "--format", "json"))["services"]
    return found


def mounted_config(proxy: Service) -> Path:
    """The file of this repository that the proxy's command line names."""
    wanted = proxy["command"][-1]
    (source,) = (volume["source"] for volume in proxy["volumes"] if volume["target"] == wanted)
    return Path(source)


def dockerfile(instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


# --- as written -------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    assert compose("config", "-q") == ""


def test_the_dockerfile_passes_hadolint() -> None:
    ended = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_every_image_is_pinned_to_a_version(services: dict[str, Service]) -> None:
    images = {each["image"] for each in services.values() if "build" not in each}
    images |= {each.split()[0] for each in dockerfile("FROM")}
    assert images
    assert [each for each in images if not re.search(r":\d+\.\d+", each)] == []


def test_every_service_has_a_health_check(services: dict[str, Service]) -> None:
    assert [name for name, each in services.items() if not each["healthcheck"]["test"]] == []


def test_ports_are_published_on_the_loopback_only(services: dict[str, Service]) -> None:
    published = {name: port["host_ip"] for name, each in services.items() for port in each.get("ports", ())}
    assert published == {"proxy": HOST}


def test_the_published_port_is_the_one_the_proxy_listens_on(services: dict[str, Service]) -> None:
    (port,) = services["proxy"]["ports"]
    assert port["target"] == Config.load(mounted_config(services["proxy"])).listen.port


def test_the_proxys_shards_are_the_services(services: dict[str, Service]) -> None:
    config = Config.load(mounted_config(services["proxy"]))
    nodes = {str(node) for shard in config.shards for node in (shard.primary, *shard.replicas)}
    assert nodes == {f"{name}:{SERVER_PORT}" for name in services if name != "proxy"}
    assert len(config.shards) == SHARDS
    for shard in config.shards:
        for replica in shard.replicas:
            command = services[replica.host]["command"]
            assert command[command.index("--replicaof") + 1 :] == [shard.primary.host, str(shard.primary.port)]


def test_the_image_runs_the_program_without_root() -> None:
    (entrypoint,) = dockerfile("ENTRYPOINT")
    assert json.loads(entrypoint) == ["pyproxy"]
    assert dockerfile("USER") == ["10001:10001"]


# --- as run -----------------------------------------------------------------------------------------------------------


class Container(Process):
    """The command line of a service, run here."""

    def __init__(self, name: str, command: list[str], directory: Path, port: int) -> None:
        super().__init__(name, directory / f"{name}.log")
        self.port = port
        self._command = command

    def command(self) -> list[str]:
        return self._command


@dataclass
class Project:
    """All services, running."""

    servers: dict[str, Container]
    proxy: Container


@pytest.fixture(scope="module")
def project(services: dict[str, Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Every service's command line, with hosts and ports rewritten to this machine's."""
    directory = tmp_path_factory.mktemp("compose")
    with ExitStack() as cleanup:
        keepers = {name: cleanup.enter_context(reserve_port()) for name in services}
        ports: dict[str, int] = {name: keeper.getsockname()[1] for name, keeper in keepers.items()}

        def run(name: str, command: list[str]) -> Container:
            container = Container(name, command, directory, ports[name])
            container.launch()
            cleanup.callback(container.stop)
            container.wait_for_pong(container.port)
            return container

        names = sorted((name for name in services if name != "proxy"), key=lambda name: "depends_on" in services[name])
        servers = {name: run(name, server_command(services[name], ports, directory, name)) for name in names}
        proxy = run("proxy", proxy_command(services["proxy"], ports, directory))
        yield Project(servers, proxy)


def server_command(service: Service, ports: dict[str, int], directory: Path, name: str) -> list[str]:
    program, *options = service["command"]
    assert program == "valkey-server"
    if "--replicaof" in options:
        at = options.index("--replicaof") + 1
        options[at : at + 2] = [HOST, str(ports[options[at]])]
    here = ["--port", str(ports[name]), "--bind", HOST, "--dir", str(directory), "--dbfilename", f"{name}.rdb"]
    return [find_backend().path, *options, *here]


def proxy_command(service: Service, ports: dict[str, int], directory: Path) -> list[str]:
    written = mounted_config(service).read_text()
    written = re.sub(r'"([a-z0-9-]+):6379"', lambda found: f'"{HOST}:{ports[found[1]]}"', written)
    written, changed = re.subn(r'"0\.0\.0\.0:6380"', f'"{HOST}:{ports["proxy"]}"', written)
    assert changed == 1
    config = directory / "pyproxy.toml"
    config.write_text(written)
    return [sys.executable, "-m", "pyproxy", *service["command"][:-1], str(config)]


def test_every_primary_answers_through_the_proxy(project: Project) -> None:
    keys = [f"key:{number}" for number in range(200)]
    with redis.Redis(port=project.proxy.port) as client:
        for key in keys:
            assert client.set(key, key)
        assert client.mget(keys) == [key.encode() for key in keys]
    held = {name: ask(each.port, "DBSIZE") for name, each in project.servers.items() if not name.endswith("-replica")}
    assert len(held) == SHARDS
    assert 0 not in held.values()
    assert sum(number for number in held.values() if isinstance(number, int)) == len(keys)


def test_every_replica_is_linked_to_its_primary(project: Project) -> None:
    def unlinked() -> list[str]:
        roles = {name: ask(each.port, "ROLE") for name, each in project.servers.items() if name.endswith("-replica")}
        assert len(roles) == SHARDS
        return [
            name
            for name, role in roles.items()
            if not isinstance(role, list)
            or role[0] != b"slave"
            or role[2] != project.servers[name.removesuffix("-replica")].port
            or role[3] != b"connected"
        ]

    wait_until("all replicas to be linked", lambda: not unlinked(), lambda: f"unlinked: {unlinked()}")


def test_the_proxys_health_check_is_good_while_it_answers_and_bad_after(
    services: dict[str, Service], project: Project
) -> None:
    kind, program, *arguments = services["proxy"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")

    def health(port: int) -> int:
        command = [sys.executable, *(each.replace("6380", str(port)) for each in arguments)]
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode

    with reserve_port() as silent:
        assert (health(project.proxy.port), health(silent.getsockname()[1])) == (0, 1)
