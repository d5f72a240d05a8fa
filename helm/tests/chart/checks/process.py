"""The rendered manifests, run as processes: the real binary with exactly the arguments, variables, file and probes that a
kubelet would use, on a real etcd and the bundled S3 server."""

import base64
import contextlib
import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from chart import render, tools
from chart.registry import Skip, check, equal

KINDS = {"coord": "Deployment", "node": "Deployment", "logstore": "StatefulSet", "replicate": "Deployment"}
# Seconds for what takes a few: the machine may build next door.
BUSY = 90
KEYS = {"accessKey": "chart-test", "secretKey": "chart-test-secret"}


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# A kubelet does not ask who it is that answers a probe.
ANYBODY = ssl._create_unverified_context()


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=5, context=ANYBODY) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


def until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


class Cluster:
    """etcd, an S3 server, and containers of rendered pods."""

    def __init__(self, scratch, stack):
        self.scratch, self.stack = scratch, stack

    def start(self, name, command, environment):
        log = open(self.scratch / f"{name}.log", "w")
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log, cwd=self.scratch)

        def end():
            process.kill()
            process.wait()
            log.close()

        self.stack.callback(end)
        return process

    def role(self, objects, role, name=None, extra=(), group=""):
        """Starts a role's container, of a resource group if one is named; (process, admin address)."""
        spec = render.named(objects, KINDS[role], f"s-streaming-{role}{group and '-'}{group}")["spec"]["template"]["spec"]
        container = spec["containers"][0]
        file = self.scratch / f"{name or role}.yaml"
        file.write_text(self.placed(render.named(objects, "ConfigMap", f"s-streaming-{role}")["data"]["streaming.yaml"]))
        self.mount(objects, spec)
        command, environment = self.container(container, file)
        process = self.start(name or role, [*command, *extra], environment)
        admin = {port["name"]: port["containerPort"] for port in container["ports"]}["admin"]
        return process, f"{container['readinessProbe']['httpGet']['scheme'].lower()}://127.0.0.1:{admin}"

    def mount(self, objects, spec):
        """Puts rendered Secrets where a pod has them, all files of one at once."""
        for volume in spec["volumes"]:
            if "secret" in volume:
                data = render.named(objects, "Secret", volume["secret"]["secretName"])["data"]
                directory = self.scratch / "mounted" / volume["name"]
                version = pathlib.Path(tempfile.mkdtemp(dir=self.scratch))
                directory.mkdir(parents=True, exist_ok=True)
                # Pods share it here, and the test pod's has less in it.
                for old in [file for file in directory.iterdir() if file.name != "..data"]:
                    shutil.copy(old, version)
                for item in volume["secret"]["items"]:
                    (version / item["path"]).write_bytes(base64.b64decode(data[item["key"]]))
                    if not (directory / item["path"]).is_symlink():
                        (directory / item["path"]).symlink_to(f"..data/{item['path']}")
                (directory / "..new").symlink_to(version)
                (directory / "..new").rename(directory / "..data")

    def placed(self, text):
        """A text with the paths of a pod replaced by those of here."""
        for mounted in ("tls", "auth"):
            text = text.replace(f"/etc/streaming/{mounted}/", f"{self.scratch}/mounted/{mounted}/")
        return text.replace("/lines/lines", str(self.scratch / "lines"))

    def etcd(self, client, peer):
        client, peer = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        process = self.start("etcd", ["etcd", "--data-dir", "etcd", "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"], {})  # fmt: skip
        until(lambda: status(f"{client}/health") == 200, 30, "etcd")
        return process

    def s3(self, port, spare):
        """The bundled server, with its own arguments and probe."""
        rendered = render.main_container(render.template(), "StatefulSet", "s-streaming-s3")
        others = ("master.port", "volume.port", "filer.port", "admin.port", "s3.port.iceberg", "s3.port.lance")
        keys = {"AWS_ACCESS_KEY_ID": KEYS["accessKey"], "AWS_SECRET_ACCESS_KEY": KEYS["secretKey"], "HOME": str(self.scratch)}
        path = rendered["readinessProbe"]["httpGet"]["path"]
        # 403: it has the bucket, and asks for keys.
        answers = lambda: (status(f"http://127.0.0.1:{port}{path}"), status(f"http://127.0.0.1:{port}/streaming"))  # noqa: E731
        # It takes more ports than it can be told, and one of them may be in use.
        for attempt in range(3):
            directory = self.scratch / f"s3-{attempt}"
            directory.mkdir()
            moved = {"-s3.port=8333": f"-s3.port={port}", "-dir=/data": f"-dir={directory}", "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1"}
            arguments = [moved.get(word, word) for word in rendered["args"]]
            arguments += [f"-{name}={other}" for name, other in zip(others, spare if attempt == 0 else free_ports(len(others)))]
            self.store = process = self.start("s3", [shutil.which("weed"), *arguments], keys)
            try:
                return until(lambda: answers() == (200, 403), 30, f"the S3 server's probe: exit {process.poll()}")
            except AssertionError:
                if attempt == 2:
                    raise
                process.kill()
                process.wait()

    def whole_log(self, name):
        return (self.scratch / f"{name}.log").read_text()

    def log(self, name):
        return self.whole_log(name)[-3000:]

    def container(self, container, configuration=None):
        """Command and environment of a container, with what a kubelet would put in place."""
        environment = {"POD_NAME": "pod", "POD_IP": "127.0.0.1"}
        for name, entry in render.environment(container).items():
            source = entry.get("valueFrom", {})
            if "secretKeyRef" in source:
                environment[name] = KEYS[source["secretKeyRef"]["key"]]
            elif "value" in entry:
                environment[name] = self.placed(re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], entry["value"]))
        if configuration:
            environment["STREAMING_CONFIG"] = str(configuration)
        return [tools.streaming(), *map(self.placed, container["args"])], environment


def values(etcd, s3, ports):
    coord, coord_admin, node, node_admin = ports
    return {
        "etcd": {"endpoints": [f"127.0.0.1:{etcd}"], "bundled": {"enabled": False}},
        "objectStorage": {"endpoint": "127.0.0.1", "port": s3, "useSSL": False, "existingSecret": "keys", "bundled": {"enabled": False}},
        "coord": {"ports": {"grpc": coord, "admin": coord_admin}},
        "node": {"ports": {"grpc": node, "admin": node_admin}},
        "config": {"rootCoord": {"dmlChannelNum": 2}, "common": {"session": {"ttl": "3s"}}},
    }


@contextlib.contextmanager
def scratch_cluster(more=None):
    """(a cluster in which nothing runs, its ports, the objects rendered for them and for more values)."""
    tools.streaming()
    if not shutil.which("etcd"):
        raise Skip("etcd is not installed (`make etcd`)")
    with contextlib.ExitStack() as stack:
        cluster = Cluster(pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
        ports = free_ports(15)
        yield cluster, ports, render.template(render.merged(values(ports[0], ports[2], ports[3:7]), more or {}))


def until_ready(cluster, objects, running):
    """Asks every probe of the processes, which are called as they were started, as a kubelet would."""
    for name, (process, address) in running.items():
        role = name.split("-")[0]
        container = render.main_container(objects, KINDS[role], f"s-streaming-{role}")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            url = address + container[probe]["httpGet"]["path"]
            until(lambda: process.poll() is None and status(url) == 200, BUSY, f"{role} {probe}: exit {process.poll()}; {''.join(cluster.log(each) for each in running)}")


@contextlib.contextmanager
def rendered_cluster():
    """(the cluster, its objects, {role: process and admin address}, etcd, spare ports), all ready."""
    with scratch_cluster() as (cluster, ports, objects):
        etcd = cluster.etcd(*ports[:2])
        cluster.s3(ports[2], ports[9:])
        running = {role: cluster.role(objects, role) for role in ("coord", "node")}
        until_ready(cluster, objects, running)
        yield cluster, objects, running, etcd, ports[7:9]


def try_test_pod(cluster, objects, *more):
    """How the pod of `helm test` ended, with more arguments than it has."""
    (cluster.scratch / "lines").write_text(render.named(objects, "ConfigMap", "s-streaming-test")["data"]["lines"])
    pod = render.named(objects, "Pod", "s-streaming-test")["spec"]
    cluster.mount(objects, pod)
    command, environment = cluster.container(pod["containers"][0])
    return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=pod["activeDeadlineSeconds"])


def run_test_pod(cluster, objects):
    """What the pod of `helm test` prints."""
    done = try_test_pod(cluster, objects)
    assert done.returncode == 0, f"{done.stderr}{cluster.log('node')}"
    return done.stdout


def inside(cluster, objects, role, *words):
    """A verb as somebody calls it in a role's pod (`kubectl exec`): it finds the cluster and is let in."""
    container = render.main_container(objects, KINDS[role], f"s-streaming-{role}")
    cluster.mount(objects, render.named(objects, KINDS[role], f"s-streaming-{role}")["spec"]["template"]["spec"])
    (streaming, *_), environment = cluster.container(container, cluster.scratch / f"{role}.yaml")
    done = subprocess.run([streaming, *words], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words} in the pod of a {role}: {done.stdout}{done.stderr}"
    return done.stdout


@check("P14", "rendered arguments, variables and files start the real roles; probes answer; the test pod finds what it appended itself, and fails if that does not come back; verbs in the roles' pods work; SIGTERM ends with 0 in time")
def round_trip():
    with rendered_cluster() as (cluster, objects, running, *_):
        told = [json.loads(run_test_pod(cluster, objects)) for _ in range(2)]
        assert told[0]["last"] != told[1]["last"], told
        for run in told:
            read = ["consume", run["channel"], "--from", run["first"], "--count", "3"]
            equal(inside(cluster, objects, "node", *read), "one\ntwo\nthree\n", f"what is there of {run}")
        for ask, code in (("pause", 1), ("resume", 0)):
            urllib.request.urlopen(f"{running['node'][1]}/node/consumers/{ask}", data=b"", timeout=5).close()
            done = try_test_pod(cluster, objects, "--timeout", "5s")
            equal((done.returncode, "did not come back" in done.stderr), (code, bool(code)), f"after {ask}: {done.stdout}{done.stderr}")
        with urllib.request.urlopen(running["node"][1] + "/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert re.search(r'^milvus_wal_append_message_total\{[^}]*status="ok"\} [1-9]', text, re.M), text[:2000]
        for role in running:
            assert "by-dev-rootcoord-dml_1" in inside(cluster, objects, role, "channels")
            assert {"coord": "mixcoord", "node": "streamingnode"}[role] in inside(cluster, objects, role, "health")
        inside(cluster, objects, "coord", "doctor", "--data", str(cluster.scratch / "doctor"))
        for role in ("node", "coord"):
            process = running[role][0]
            grace = render.named(objects, "Deployment", f"s-streaming-{role}")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            process.send_signal(signal.SIGTERM)
            equal(process.wait(timeout=grace), 0, f"{role}: exit code after SIGTERM; {cluster.log(role)}")


# Seconds until all is ready if what it needs is there.
PROMPT = 15


@check("P15", f"with what they need there, ready within {PROMPT} s; started before etcd or before object storage: alive, not ready, say what they wait for, and ready without a restart once it is there")
def before_the_stores():
    for late, told in (("etcd", "metadata store"), ("s3", "object store"), (None, None)):
        with scratch_cluster() as (cluster, ports, objects):
            start = {"etcd": lambda: cluster.etcd(*ports[:2]), "s3": lambda: cluster.s3(ports[2], ports[9:])}  # noqa: B023
            for name in start.keys() - {late}:
                start[name]()
            running = {role: cluster.role(objects, role) for role in ("coord", "node")}
            begun = time.monotonic()
            if late:
                for role, (process, address) in running.items():
                    until(lambda: (status(address + "/livez"), status(address + "/readyz")) == (200, 503), 30, f"{role} waits: {cluster.log(role)}")  # noqa: B023
                    until(lambda: told in cluster.log(role), 30, f"{role} says that it waits for the {told}: {cluster.log(role)}")  # noqa: B023
                    assert process.poll() is None, cluster.log(role)
                start[late]()
            until_ready(cluster, objects, running)
            took = time.monotonic() - begun
            assert late or took < PROMPT, f"ready after {took:.0f} s"
            run_test_pod(cluster, objects)


@check("P16", "without etcd and object storage the processes stay alive; without etcd what is assigned stays served, and in a pod a verb that is given the coordinator's address says by whom")
def without_the_stores():
    with rendered_cluster() as (cluster, objects, running, etcd, _):
        run_test_pod(cluster, objects)
        for store in (etcd, cluster.store):
            store.kill()
            store.wait()
            # Longer than three liveness probes of a kubelet that asked every second.
            for _ in range(4):
                time.sleep(1)
                for role, (process, address) in running.items():
                    assert process.poll() is None, f"{role} ended: {cluster.log(role)}"
                    equal(status(address + "/livez"), 200, f"{role} /livez")
            if store is etcd:
                equal(status(running["node"][1] + "/readyz"), 200, "node /readyz")
                grpc = next(port["containerPort"] for port in render.main_container(objects, "Deployment", "s-streaming-coord")["ports"] if port["name"] == "grpc")
                assert "dml_1" in inside(cluster, objects, "coord", "channels", "--coordinator", f"127.0.0.1:{grpc}")


@check("P17", "a coordinator that stands by is healthy, and leads within the session's time to live + 5 s when the leader is killed")
def failover():
    with rendered_cluster() as (cluster, objects, running, _, (grpc, admin)):
        extra = ["--set", f"rootCoord.port={grpc}", "--set", f"rootCoord.advertise=127.0.0.1:{grpc}", "--set", f"admin.port={admin}"]
        standby, _ = cluster.role(objects, "coord", "standby", extra)
        address = f"http://127.0.0.1:{admin}"
        until(lambda: status(address + "/healthz") == status(address + "/readyz") == 200, 30, "the standby's /healthz")
        run_test_pod(cluster, objects)
        assert '"active"' not in cluster.log("standby"), "two lead"
        running["coord"][0].kill()
        begun = time.monotonic()
        until(lambda: '"active"' in cluster.log("standby"), 3 + 5, f"lead: {cluster.log('standby')}")
        run_test_pod(cluster, objects)
        assert standby.poll() is None and time.monotonic() - begun < 30


@check("P19", "the node that owns a channel is stopped amid appends: not ready first, 0 in time, every line there once and in order")
def handed_over():
    with rendered_cluster() as (cluster, objects, running, etcd, (grpc, admin)):
        extra = ["--set", f"streamingNode.port={grpc}", "--set", f"streamingNode.advertise=127.0.0.1:{grpc}", "--set", f"admin.port={admin}"]
        other, _ = cluster.role(objects, "node", "node-2", extra)
        running["node-2"] = (other, f"http://127.0.0.1:{admin}")
        until_ready(cluster, objects, running)
        container = render.named(objects, "Pod", "s-streaming-test")["spec"]["containers"][0]
        command, environment = cluster.container(container)
        command[command.index("--file") : command.index("--file") + 2] = []
        lines = [f"{number}\n" for number in range(300)]
        producer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in lines[:100]:
            producer.stdin.write(line)
            producer.stdin.flush()
            time.sleep(0.01)
        described = subprocess.run([command[0], "describe", command[2]], env=environment, capture_output=True, text=True).stdout
        leaving = "node-2" if f":{grpc} " in described else "node"
        process, address = running[leaving]
        # A stop takes milliseconds, fewer than a look at it may: while etcd is frozen it cannot end.
        etcd.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        until(lambda: status(address + "/readyz") == 503, 5, f"{leaving} is ready while it stops: {cluster.log(leaving)}")
        etcd.send_signal(signal.SIGCONT)
        for line in lines[100:]:
            producer.stdin.write(line)
            producer.stdin.flush()
            time.sleep(0.01)
        grace = render.named(objects, "Deployment", "s-streaming-node")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        equal(process.wait(timeout=grace), 0, cluster.log(leaving))
        _, said = producer.communicate(timeout=60)
        equal(producer.returncode, 0, said)
        read = [command[0], "consume", command[2], "--count", str(len(lines)), "--until-idle", "20s"]
        equal(subprocess.run(read, env=environment, capture_output=True, text=True, timeout=90).stdout, "".join(lines), "what was appended")


@check("P20", "a second SIGTERM ends a process that cannot finish its stop")
def impatient():
    with rendered_cluster() as (cluster, objects, running, etcd, _):
        run_test_pod(cluster, objects)
        process = running["node"][0]
        # A frozen etcd: the session cannot be given up.
        etcd.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        equal(process.poll(), None, "stopped although etcd does not answer: the second signal shows nothing")
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=3), 130, cluster.log("node"))
