"""Rendered log stores, run as processes: three of them and more, with a disk each, under a rendered coordinator and node."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.request

from chart import render, tools
from chart.checks import observe
from chart.checks.replicate import SHIPPING
from chart.checks.process import free_ports, run_test_pod, scratch_cluster, until, until_ready, values
from chart.registry import check, equal

# Segments roll and are sealed while one looks on.
QUICK = {
    "config": {
        "rootCoord": {"dmlChannelNum": 1},
        "woodpecker": {
            "client": {"segmentRollingPolicy": {"maxInterval": "2s"}},
            "maintenance": {"sealAfter": "1s", "interval": "1s"},
        },
    }
}


class Stores:
    """Log stores by ordinal, each with its ports and its claim."""

    def __init__(self, cluster, objects):
        self.cluster, self.objects = cluster, objects
        self.ports = free_ports(8)
        self.running = {}

    def start(self, ordinal):
        grpc, admin = self.ports[2 * ordinal : 2 * ordinal + 2]
        # What a pod has of its own: a name, an address, a claim.
        own = ["--data", self.cluster.scratch / f"claim-{ordinal}"]
        for setting in (f"woodpecker.logstore.port={grpc}", f"woodpecker.logstore.advertise=127.0.0.1:{grpc}", f"admin.port={admin}"):
            own += ["--set", setting]
        # The test machine's disk may be fuller than a claim is.
        own += ["--set", "woodpecker.logstore.disk.softUsed=0.98", "--set", "woodpecker.logstore.disk.hardUsed=0.99"]
        process, _ = self.cluster.role(self.objects, "logstore", f"logstore-{ordinal}", own)
        self.running[ordinal] = (process, f"http://127.0.0.1:{admin}")

    def ready(self, *ordinals):
        for ordinal in ordinals:
            until_ready(self.cluster, self.objects, {f"logstore-{ordinal}": self.running[ordinal]})

    def stop(self, ordinal):
        """SIGTERM, as a kubelet does; must end with 0 within the grace."""
        grace = render.named(self.objects, "StatefulSet", "s-streaming-logstore")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        process = self.running[ordinal][0]
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=grace), 0, f"store {ordinal}: exit code after SIGTERM; {self.cluster.log(f'logstore-{ordinal}')}")

    def ask(self, ordinal, path, method="GET"):
        with urllib.request.urlopen(urllib.request.Request(self.running[ordinal][1] + path, method=method), timeout=5) as answer:
            return json.load(answer)


@contextlib.contextmanager
def quorum(count=3):
    """(the cluster, its objects, its stores, {role: process and admin address}), all ready."""
    with scratch_cluster(render.merged(render.QUORUM, QUICK)) as (cluster, ports, objects):
        cluster.etcd(*ports[:2])
        cluster.s3(ports[2], ports[9:])
        stores = Stores(cluster, objects)
        for ordinal in range(count):
            stores.start(ordinal)
        stores.ready(*range(count))
        running = {role: cluster.role(objects, role) for role in ("coord", "node")}
        until_ready(cluster, objects, running)
        yield cluster, objects, stores, running


def consumed(cluster, objects, count):
    """The first messages of the channel that the test pod appends to."""
    pod = render.named(objects, "Pod", "s-streaming-test")["spec"]["containers"][0]
    (streaming, _, channel, *_), environment = cluster.container(pod)
    command = [streaming, "consume", channel, "--from", "earliest", "--count", str(count), "--json", "--timeout", "60s"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + cluster.log("node")
    return [json.loads(line) for line in done.stdout.splitlines()]


def bodies(messages):
    return [next(value for value in message.values() if isinstance(value, str) and value.strip() in ("one", "two", "three")).strip() for message in messages]


@check("P21", "three log stores with empty disks start side by side; all of them and the node killed and started again, everything acked is there")
def outage():
    with quorum() as (cluster, objects, stores, running):
        run_test_pod(cluster, objects)
        before = consumed(cluster, objects, 3)
        for process, _ in [*stores.running.values(), running["node"]]:
            process.kill()
            process.wait()
        for ordinal in range(3):
            stores.start(ordinal)
        running["node"] = cluster.role(objects, "node")
        stores.ready(0, 1, 2)
        until_ready(cluster, objects, running)
        equal(bodies(consumed(cluster, objects, 3)), bodies(before), "what was acked")
        run_test_pod(cluster, objects)


@check("P23", "log stores stopped and started one after the other, as a rolling update does: each ends with 0, appends go on")
def rolling():
    with quorum() as (cluster, objects, stores, _):
        run_test_pod(cluster, objects)
        for ordinal in (2, 1, 0):
            stores.stop(ordinal)
            run_test_pod(cluster, objects)
            stores.start(ordinal)
            stores.ready(ordinal)
            run_test_pod(cluster, objects)
        equal(len(consumed(cluster, objects, 21)), 21, "messages of seven rounds")


@check("P27", "a log store that is given up is empty when it says so: it is removed with its disk, and nothing is lost")
def decommission():
    with quorum(count=4) as (cluster, objects, stores, _):
        run_test_pod(cluster, objects)
        held = {ordinal: stores.ask(ordinal, "/logstore/status")["replicas"] for ordinal in range(4)}
        leaving = max(held, key=held.get)
        assert held[leaving], f"no store has anything: {held}"
        equal(stores.ask(leaving, "/logstore/status")["safeToRemove"], False)
        equal(stores.ask(leaving, "/logstore/decommission", "POST")["safeToRemove"], False)

        def empty():
            # Segments that are still written roll with the next append.
            run_test_pod(cluster, objects)
            return stores.ask(leaving, "/logstore/status")["safeToRemove"]

        until(empty, 60, f"safeToRemove: {stores.ask(leaving, '/logstore/status')}; {cluster.log('coord')}")
        stores.stop(leaving)
        shutil.rmtree(cluster.scratch / f"claim-{leaving}")
        run_test_pod(cluster, objects)
        equal(bodies(consumed(cluster, objects, 3)), ["one", "two", "three"])


@check("P49", "from object storage to log stores with storage.also: the roles started anew take every channel over, and what was there is read on")
def moved():
    with scratch_cluster(QUICK) as (cluster, ports, before):
        cluster.etcd(*ports[:2])
        cluster.s3(ports[2], ports[9:])
        running = {role: cluster.role(before, role) for role in ("coord", "node")}
        until_ready(cluster, before, running)
        run_test_pod(cluster, before)
        # Killed, they leave the last segment open on object storage.
        for process, _ in running.values():
            process.kill()
            process.wait()
        now = render.merged(values(ports[0], ports[2], ports[3:7]), QUICK, render.QUORUM, {"storage": {"also": ["object"]}})
        objects = render.template(now)
        stores = Stores(cluster, objects)
        for ordinal in range(3):
            stores.start(ordinal)
        stores.ready(0, 1, 2)
        running = {role: cluster.role(objects, role) for role in ("coord", "node")}
        until_ready(cluster, objects, running)
        run_test_pod(cluster, objects)
        equal(bodies(consumed(cluster, objects, 6)), 2 * ["one", "two", "three"])
        held = sum(stores.ask(ordinal, "/logstore/status")["replicas"] for ordinal in range(3))
        assert held, "nothing is on the log stores"


# What a healthy cluster has no reason to expose, because the process counts it when it happens for the first time.
ON_OCCASION = {
    "milvus_wal_failure_total", "milvus_wal_scan_bad_record_total", "milvus_wal_scan_time_tick_violation_message_total", "woodpecker_volume_failures_total",
    "woodpecker_logstore_corrupt_total", "woodpecker_logstore_refused_total", "woodpecker_maintenance_failures_total",
    "streaming_reload_failures_total", "woodpecker_quorum_replicas_lost_total", "woodpecker_quorum_store_exclusions_total",
    # Of the role `replicate`, which P44 runs.
    *SHIPPING,
    # When writers are held back.
    "milvus_wal_rate_limit_bytes",
    # Of the backend `object`.
    "woodpecker_object_batches_total", "woodpecker_object_batch_bytes_total",
}  # fmt: skip


@check("P31", "every metric in alerts and dashboards is exposed by the running roles, but for those of failures; Prometheus reads what they expose")
def exposed():
    with quorum() as (cluster, objects, stores, running):
        run_test_pod(cluster, objects)
        addresses = [address for _, address in [*running.values(), *stores.running.values()]]
        wanted = {name for expression in observe.expressions() for name, _ in observe.used(expression)} - observe.BUILT_IN - ON_OCCASION

        def missing():
            text = ""
            for address in addresses:
                with urllib.request.urlopen(address + "/metrics", timeout=5) as answer:
                    text += answer.read().decode()
            return wanted - set(re.findall(r"^([a-z_][a-z0-9_]*)[{ ]", text, re.M))

        deadline = time.monotonic() + 30
        while missing() and time.monotonic() < deadline:
            run_test_pod(cluster, objects)
        equal(sorted(missing()), [], "used, and exposed by no role")
        for address in addresses:
            with urllib.request.urlopen(address + "/metrics", timeout=5) as answer:
                done = subprocess.run([tools.promtool(), "check", "metrics"], input=answer.read(), capture_output=True)
            # 3 is its opinion on names, some of which are Milvus'.
            assert done.returncode in (0, 3), f"{address}: Prometheus cannot read /metrics: {done.stderr.decode()[-1000:]}"
