"""The rendered manifests, run as processes: the real binary with exactly the arguments, variables, file and probes that a
kubelet would use, on a real etcd and the bundled S3 server."""

import contextlib
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from chart import render, tools
from chart.registry import Skip, check, equal

KEYS = {"accessKey": "chart-test", "secretKey": "chart-test-secret"}


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def status(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
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

    def log(self, name):
        return (self.scratch / f"{name}.log").read_text()[-3000:]

    def container(self, objects, container, configuration=None):
        """Command and environment of a container, with what a kubelet would put in place."""
        environment = {"POD_NAME": "pod", "POD_IP": "127.0.0.1"}
        for name, entry in render.environment(container).items():
            source = entry.get("valueFrom", {})
            if "secretKeyRef" in source:
                environment[name] = KEYS[source["secretKeyRef"]["key"]]
            elif "value" in entry:
                environment[name] = re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], entry["value"])
        if configuration:
            environment["STREAMING_CONFIG"] = str(configuration)
        arguments = [word.replace("/lines/lines", str(self.scratch / "lines")) for word in container["args"]]
        return [tools.streaming(), *arguments], environment


def stores(cluster, ports):
    etcd, peer, s3, *spare = ports
    if not shutil.which("etcd"):
        raise Skip("etcd is not installed (`make etcd`)")
    client = f"http://127.0.0.1:{etcd}"
    at = f"http://127.0.0.1:{peer}"
    store = cluster.start("etcd", ["etcd", "--data-dir", "etcd", "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", at, "--initial-advertise-peer-urls", at, "--initial-cluster", f"default={at}"], {})  # fmt: skip
    rendered = render.main_container(render.template(), "StatefulSet", "s-streaming-s3")
    arguments = [re.sub(r"-s3\.port=\d+", f"-s3.port={s3}", word).replace("/data", str(cluster.scratch / "s3")) for word in rendered["args"]]
    arguments = [word.replace("0.0.0.0", "127.0.0.1") for word in arguments]
    (cluster.scratch / "s3").mkdir()
    taken = ["master.port", "volume.port", "filer.port", "admin.port", "s3.port.iceberg", "s3.port.lance"]
    arguments += [f"-{name}={port}" for name, port in zip(taken, spare)]
    keys = {"AWS_ACCESS_KEY_ID": KEYS["accessKey"], "AWS_SECRET_ACCESS_KEY": KEYS["secretKey"], "HOME": str(cluster.scratch)}
    cluster.start("s3", [shutil.which("weed"), *arguments], keys)
    until(lambda: status(f"{client}/health") == 200, 30, "etcd")
    path = rendered["readinessProbe"]["httpGet"]["path"]
    until(lambda: status(f"http://127.0.0.1:{s3}{path}") == 200 and status(f"http://127.0.0.1:{s3}/streaming") == 403, 60, "the S3 server's probe")
    return store


def values(etcd, s3, ports):
    coord, coord_admin, node, node_admin = ports
    return {
        "etcd": {"endpoints": [f"127.0.0.1:{etcd}"], "bundled": {"enabled": False}},
        "objectStorage": {"endpoint": "127.0.0.1", "port": s3, "useSSL": False, "existingSecret": "keys", "bundled": {"enabled": False}},
        "coord": {"ports": {"grpc": coord, "admin": coord_admin}},
        "node": {"ports": {"grpc": node, "admin": node_admin}},
        "config": {"rootCoord": {"dmlChannelNum": 2}},
    }


def run_test_pod(cluster, objects):
    """What the pod of `helm test` prints last."""
    (cluster.scratch / "lines").write_text(render.named(objects, "ConfigMap", "s-streaming-test")["data"]["lines"])
    pod = render.named(objects, "Pod", "s-streaming-test")["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        command, environment = cluster.container(objects, container)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=pod["activeDeadlineSeconds"])
        assert done.returncode == 0, f"{container['name']}: {done.stderr}{cluster.log('node')}"
    return done.stdout


@contextlib.contextmanager
def rendered_cluster():
    """(the cluster, its objects, {role: process and admin address}, etcd), all ready."""
    tools.streaming()
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = Cluster(scratch, stack)
        ports = free_ports(13)
        etcd = stores(cluster, ports[:9])
        objects = render.template(values(ports[0], ports[2], ports[9:13]))
        running = {}
        for role in ("coord", "node"):
            container = render.main_container(objects, "Deployment", f"s-streaming-{role}")
            file = scratch / f"{role}.yaml"
            file.write_text(render.named(objects, "ConfigMap", f"s-streaming-{role}")["data"]["streaming.yaml"])
            command, environment = cluster.container(objects, container, file)
            process = cluster.start(role, command, environment)
            admin = {port["name"]: port["containerPort"] for port in container["ports"]}["admin"]
            running[role] = process, f"http://127.0.0.1:{admin}"
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                url = running[role][1] + container[probe]["httpGet"]["path"]
                # A coordinator without a node may say that it is not ready.
                good = (200, 503) if (role, probe) == ("coord", "readinessProbe") else (200,)
                until(lambda: process.poll() is None and status(url) in good, 30, f"{role} {probe}: {cluster.log(role)}")
        until(lambda: status(running["coord"][1] + "/readyz") == 200, 30, "coord ready with a node")
        yield cluster, objects, running, etcd


@check("P14", "rendered arguments, variables and files start the real roles; probes answer; the test pod's round trip works; SIGTERM ends with 0 in time")
def round_trip():
    with rendered_cluster() as (cluster, objects, running, _):
        out = run_test_pod(cluster, objects)
        equal([word for word in ("one", "two", "three") if word not in out], [], "lines not read back")
        with urllib.request.urlopen(running["node"][1] + "/metrics", timeout=5) as answer:
            text = answer.read().decode()
        assert re.search(r'^milvus_wal_append_message_total\{status="ok"\} [3-9]', text, re.M), text[:2000]
        for role in ("node", "coord"):
            process = running[role][0]
            grace = render.named(objects, "Deployment", f"s-streaming-{role}")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            process.send_signal(signal.SIGTERM)
            equal(process.wait(timeout=grace), 0, f"{role}: exit code after SIGTERM; {cluster.log(role)}")


@check("P16", "without etcd the processes stay alive and what is assigned stays served")
def without_etcd():
    with rendered_cluster() as (cluster, objects, running, etcd):
        run_test_pod(cluster, objects)
        etcd.kill()
        etcd.wait()
        # Longer than three liveness probes of a kubelet that asked every second.
        for _ in range(4):
            time.sleep(1)
            for role, (process, address) in running.items():
                assert process.poll() is None, f"{role} ended: {cluster.log(role)}"
                equal(status(address + "/livez"), 200, f"{role} /livez")
        equal(status(running["node"][1] + "/readyz"), 200, "node /readyz")


@check("P34", "TLS on our own ports")
def tls():
    raise Skip("the binary serves no TLS on its own ports; enabling it is refused (R5)")
