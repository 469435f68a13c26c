"""Hosts on one machine: network namespaces on a bridge, each a Ray node, that are cut, killed, stopped and drained.

The test's own process and Ray's head are on the host that the bridge belongs to. A cut host's packets are dropped
without a word, as when a cable is pulled or power fails: nobody gets a reset. All hosts share this machine's files, but
each has temporary files and shared memory of its own.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.support.processes import Process, wait_until

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

_INTERFACE = "e0"
# Nobody has it: packets to it go out on the wire and reach no one.
_NOWHERE = "02:00:00:00:00:01"
_STORE_BYTES = 80 << 20
_MARKET = "ray.io/market-type"
_JOIN_S = 300.0
# Attempts to start the head.
_STARTS = 3


def unavailable() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are network namespaces, which need Linux and root"
    name = f"mltrain-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


class Host:
    """One host: a namespace, its link to the bridge, and a Ray node in it.

    Attributes:
        name: unique among the hosts.
        address: IPv4, Ray's name for the node.
    """

    def __init__(
        self, bridge: "_Bridge", number: int, ray_address: str, logs: Path, cpus: int, markets: Mapping[str, str]
    ) -> None:
        self.name = f"h{number}"
        self.address = bridge.address(number)
        self._ray_address = ray_address
        self._namespace = f"{bridge.name}-{self.name}"
        self._link = f"{bridge.name}-{number}"
        # Sockets need a short path.
        self._files = Path("/run", self._namespace)
        self._temporary = self._files / "tmp"
        self._logs = logs
        self._cpus = cpus
        self._market = markets.get(self.name)
        self._ray: Process | None = None
        self._past: set[str] = set()
        self._starts = 0
        _ip("netns", "add", self._namespace)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", _INTERFACE, "netns", self._namespace)
        _ip("link", "set", self._link, "master", bridge.name, "up")
        self._inside("link", "set", "lo", "up")
        self._inside("address", "add", f"{self.address}/24", "dev", _INTERFACE)
        self._inside("link", "set", _INTERFACE, "up")

    def start(self) -> None:
        """Powers the host on and starts its Ray node; `wait` until that has joined."""
        self.heal()
        self._starts += 1
        # A node ends with the test that started it, also when that is killed.
        into = ["setpriv", "--pdeathsig", "KILL", *self.prefix()]
        # What `ip netns exec` mounts is the command's own, and so is this.
        into += ["sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh"]
        node = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self._ray_address}"]
        node += [f"--node-ip-address={self.address}", f"--num-cpus={self._cpus}", "--disable-usage-stats"]
        # Nodes that start at the same time in one directory take each other's sockets.
        node += [f"--temp-dir={self._files}", f"--object-store-memory={_STORE_BYTES}", "--include-log-monitor=false"]
        if self._market is not None:
            node.append(f"--labels={_MARKET}={self._market}")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        # Where much else runs, processes as nice as Ray makes its workers hardly get on.
        env = {"RAY_DEDUP_LOGS": "0", "RAY_worker_niceness": "0", "TMPDIR": str(self._temporary)}
        self._ray = Process([*into, *node], self._logs / f"{self.name}-{self._starts}", env=env)

    def prefix(self) -> list[str]:
        """The words before a command that make it run on this host."""
        return ["ip", "netns", "exec", self._namespace]

    def wait(self) -> None:
        """Waits until Ray has this host's node."""
        wait_until(lambda: self.node_id, _JOIN_S, f"Ray node on {self.name}")

    @property
    def node_id(self) -> str | None:
        """Ray's id of the node that lives here."""
        import ray

        nodes = [
            str(node["NodeID"]) for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == self.address
        ]
        # Ray calls a node alive for a minute after its host has lost power.
        return next((node for node in nodes if node not in self._past), None)

    def cut(self) -> None:
        """Cuts the link: whatever is sent to or from this host is lost."""
        _ip("link", "set", self._link, "down")

    def heal(self) -> None:
        """Undoes `cut` and `part`."""
        _ip("link", "set", self._link, "up")
        self._inside("neigh", "flush", "dev", _INTERFACE, "nud", "permanent")

    def part(self, address: str) -> None:
        """Cuts this host from one address only: what it sends there is lost, answers included."""
        self._inside("neigh", "replace", address, "lladdr", _NOWHERE, "dev", _INTERFACE, "nud", "permanent")

    def power_off(self) -> None:
        """Ends everything on the host at once; nobody hears of it."""
        if (node := self.node_id) is not None:
            self._past.add(node)
        self._end()

    def _end(self) -> None:
        self.cut()
        self._signal(signal.SIGKILL)
        if self._ray is not None:
            self._ray.end()
            self._ray = None

    def stop(self) -> None:
        """SIGSTOP to everything on the host."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to everything on the host."""
        self._signal(signal.SIGCONT)

    def drain(self, deadline_s: float) -> None:
        """Announces to Ray, as a cloud's notice would, that this host goes away in ``deadline_s`` seconds."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

        deadline_ms = int((time.time() + deadline_s) * 1000)
        preempted = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client = GcsClient(address=self._ray_address)
        accepted, message = client.drain_node(self.node_id, preempted, "drained by a test", deadline_ms)
        assert accepted, message

    def processes(self) -> list[psutil.Process]:
        """Every process on the host."""
        listed = subprocess.run(["ip", "netns", "pids", self._namespace], capture_output=True, text=True, check=True)
        found = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def temporary_files(self) -> list[Path]:
        """What lies in the host's temporary directory and shared memory."""
        assert self._ray is not None
        places = [self._temporary, Path(f"/proc/{self._ray.pid}/root/dev/shm")]
        return [path for place in places for path in place.rglob("*")]

    def close(self) -> None:
        """Ends everything on the host, and the host."""
        self._end()
        _ip("link", "delete", self._link)
        _ip("netns", "delete", self._namespace)
        shutil.rmtree(self._files, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _inside(self, *words: str) -> None:
        _ip("-n", self._namespace, *words)


class Hosts:
    """Hosts ``h1`` … ``h<n>`` and the Ray cluster that they are the nodes of. `hosts` makes and ends them.

    Attributes:
        address: of the cluster, for `cluster.address`; its head has no CPUs to give.
        head: address of the head's host, where the test's own process is.
    """

    def __init__(self, cluster: "Cluster", head: str, hosts: list[Host]) -> None:
        self.address = str(cluster.address)
        self.head = head
        self._hosts = {host.name: host for host in hosts}

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    def mend(self) -> None:
        """Heals and resumes every host; one whose Ray node has gone, or is to go, gets another."""
        import ray

        draining = ray._private.state.state.get_draining_nodes()
        for host in self:
            host.heal()
            host.resume()
            if host.node_id is None or host.node_id in draining:
                host.power_off()
                host.start()
        for host in self:
            host.wait()


@contextlib.contextmanager
def hosts(count: int, logs: Path, *, cpus: int = 2, markets: Mapping[str, str] | None = None) -> Iterator[Hosts]:
    """Makes ``count`` hosts with a Ray node each, and a head here. All of it ends with the block.

    Args:
        count: how many.
        logs: folder of their Ray's output.
        cpus: of each.
        markets: what hosts, and ``head``, say that they are: ``spot`` or ``on-demand``.
    """
    import ray

    markets = markets or {}

    with contextlib.ExitStack() as stack:
        bridge = stack.enter_context(_bridge())
        head: dict[str, object] = {"num_cpus": 0, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        head |= {"node_ip_address": bridge.head, "dashboard_agent_listen_port": 0}
        if "head" in markets:
            head["labels"] = {_MARKET: markets["head"]}
        cluster = _head(head)
        stack.callback(cluster.shutdown)
        made = []
        for number in range(1, count + 1):
            made.append(Host(bridge, number, str(cluster.address), logs, cpus, markets))
            stack.callback(made[-1].close)
        for host in made:
            host.start()
        ray.init(address=cluster.address, log_to_driver=False)
        stack.callback(ray.shutdown)
        for host in made:
            host.wait()
        yield Hosts(cluster, bridge.head, made)


def _head(arguments: dict[str, object]) -> "Cluster":
    """Starts Ray's head; on a machine that is busy Ray's own deadline may be too short for the first attempts."""
    from ray.cluster_utils import Cluster

    for _ in range(_STARTS - 1):
        try:
            return Cluster(initialize_head=True, head_node_args=arguments)
        except Exception:  # a bare one is what Ray raises when its node is not there in time
            continue
    return Cluster(initialize_head=True, head_node_args=arguments)


class _Bridge:
    def __init__(self, name: str, network: str) -> None:
        self.name = name
        self.head = f"{network}.254"
        self._network = network

    def address(self, number: int) -> str:
        return f"{self._network}.{number}"


@contextlib.contextmanager
def _bridge() -> Iterator[_Bridge]:
    """A bridge with a network that no other test of this machine uses, of the range kept for tests (RFC 2544)."""
    with contextlib.ExitStack() as stack:
        for number in range(256):
            lock = stack.enter_context(Path(f"/run/mltrain-hosts-{number}").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
        else:
            raise RuntimeError("256 other tests have hosts on this machine")
        bridge = _Bridge(f"mltrain{number}", f"198.18.{number}")
        _clear(bridge.name)
        _ip("link", "add", bridge.name, "type", "bridge")
        stack.callback(_ip, "link", "delete", bridge.name)
        _ip("address", "add", f"{bridge.head}/24", "dev", bridge.name)
        _ip("link", "set", bridge.name, "up")
        yield bridge


def _clear(bridge: str) -> None:
    """Removes what a killed test left of a bridge."""
    for line in _ip("netns", "list").splitlines():
        if line.startswith(f"{bridge}-"):
            _ip("netns", "delete", line.split()[0])
            shutil.rmtree(Path("/run", line.split()[0]), ignore_errors=True)
    for link in Path("/sys/class/net").glob(f"{bridge}*"):
        if link.name == bridge or link.name.startswith(f"{bridge}-"):
            _ip("link", "delete", link.name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
