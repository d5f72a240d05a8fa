"""A real Kubernetes without machines: etcd, API server, and, if asked, controllers and scheduler, over nodes and containers that
are only said to be there. What Kubernetes decides is real: schemas, admission, rollouts, claims, placement, evictions."""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

from chart import tools
from chart.checks.process import free_ports, until
from chart.registry import Skip

NAMESPACE = "wal"
UNVERIFIED = ssl._create_unverified_context()
MERGE = "application/merge-patch+json"
PLURALS = {"NetworkPolicy": "networkpolicies"} | {
    kind: f"{kind.lower()}s" for kind in ("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "Secret", "Service", "ServiceAccount", "StatefulSet")
}  # fmt: skip


class Cluster:
    """The API of a cluster in which namespace `wal` enforces PodSecurity restricted."""

    def __init__(self, address, kubeconfig):
        self.address, self.kubeconfig = address, kubeconfig
        # What the API server warned of.
        self.warned = []

    def call(self, method, path, body=None, kind="application/json"):
        """(status, answer)"""
        headers = {"Authorization": "Bearer token", "Content-Type": kind}
        request = urllib.request.Request(self.address + path, method=method, headers=headers, data=body and json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=30, context=UNVERIFIED) as answer:
                self.warned += answer.headers.get_all("Warning") or []
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def must(self, *call):
        status, answer = self.call(*call)
        assert status < 300, f"{call}: {status} {answer.get('message')}"
        return answer

    def kubectl(self, *arguments, text=None):
        return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, env={**os.environ, "KUBECONFIG": self.kubeconfig})

    def would_take(self, item):
        """The status and message of making an object, which is not made."""
        group = item["apiVersion"] if "/" in item["apiVersion"] else ""
        status, answer = self.call("POST", f"{'/apis/' if group else '/api/'}{item['apiVersion']}/namespaces/{NAMESPACE}/{PLURALS[item['kind']]}?dryRun=All&fieldValidation=Strict", item)
        return status, answer.get("message", "")

    def pods(self, component=None):
        items = self.must("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        return [pod for pod in items if component in (None, pod["metadata"]["labels"].get("app.kubernetes.io/component"))]

    def node(self, name, zone, labels=None):
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone} | (labels or {})
        room = {"cpu": "64", "memory": "256Gi", "pods": "100"}
        self.must("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
        conditions = [{"type": "Ready", "status": "True", "reason": "SaidSo", "message": ""}]
        self.must("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"capacity": room, "allocatable": room, "conditions": conditions}}, MERGE)
        # Admission marks every new node as not ready yet.
        self.must("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": []}}, MERGE)

    def volume(self, name, path=None):
        spec = {"capacity": {"storage": "100Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": str(path or f"/volumes/{name}")}}
        self.must("POST", "/api/v1/persistentvolumes", {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    def evict(self, pod):
        """The status of an eviction: 429 if a budget forbids it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
        return self.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", body)[0]


def is_ready(pod):
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in pod.get("status", {}).get("conditions", []))


class Containers:
    """Says of every placed pod that it runs and, half a second later, that it is ready; lets go what is deleted. Records what was seen."""

    def __init__(self, cluster):
        self.cluster, self.seen = cluster, []
        # Whether a pod is not ready for now.
        self.held = lambda pod: False
        self.begun = {}
        self.ended = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.ended.wait(0.1):
                pods = self.cluster.pods()
                self.seen.append(pods)
                for pod in pods:
                    self.attend(pod)
        except Exception as failure:  # noqa: BLE001
            self.failure = failure

    def attend(self, pod):
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
        if not pod["spec"].get("nodeName"):
            return
        if pod["metadata"].get("deletionTimestamp"):
            self.cluster.call("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}})
            return
        begun = self.begun.setdefault(pod["metadata"]["uid"], time.monotonic())
        ready = not self.held(pod) and time.monotonic() - begun > 0.5
        if pod["status"]["phase"] == "Running" and is_ready(pod) == ready:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        conditions = [{"type": kind, "status": str(kind not in ("Ready", "ContainersReady") or ready), "lastTransitionTime": now} for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")]
        statuses = [{"name": each["name"], "image": each["image"], "imageID": "", "restartCount": 0, "ready": ready, "started": True, "state": {"running": {"startedAt": now}}} for each in pod["spec"]["containers"]]
        status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": statuses}
        self.cluster.call("PATCH", f"{path}/status", {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}, MERGE)

    def all_ready(self, seconds=90, **counts):
        """Waits until each component has so many pods, all ready and none on its way out."""

        def reached():
            assert not self.failure, self.failure
            found = collections.Counter()
            for pod in self.cluster.pods():
                if not is_ready(pod) or pod["metadata"].get("deletionTimestamp"):
                    return False
                found[pod["metadata"]["labels"]["app.kubernetes.io/component"]] += 1
            return dict(found) == counts

        until(reached, seconds, f"{counts}: {[(pod['metadata']['name'], pod['status']) for pod in self.cluster.pods()]}"[:1500])


@contextlib.contextmanager
def running(controllers=False, said=True):
    """A cluster; with controllers and scheduler a pair of it and what says that containers run, unless it is not said."""
    parts = ["kube-apiserver", *(("kube-controller-manager", "kube-scheduler") if controllers else ())]
    binaries = {part: tools.kubernetes(part) for part in parts}
    for needed in ("etcd", "kubectl", "openssl"):
        if not shutil.which(needed):
            raise Skip(f"{needed} is not installed")
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client, peer, secure = free_ports(3)
        (scratch / "tokens.csv").write_text("token,admin,1,system:masters\n")
        subprocess.run(["openssl", "genrsa", "-out", scratch / "accounts.key", "2048"], check=True, capture_output=True)
        address = f"https://127.0.0.1:{secure}"
        kubeconfig = scratch / "kubeconfig"
        kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": address, "insecure-skip-tls-verify": True}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {"token": "token"}}],
        }))  # fmt: skip
        log = stack.enter_context(open(scratch / "log", "w"))
        ours, peers, key = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}", scratch / "accounts.key"
        commands = [
            ["etcd", "--data-dir", scratch / "etcd", "--listen-client-urls", ours, "--advertise-client-urls", ours, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}", "--unsafe-no-fsync"],
            [binaries["kube-apiserver"], f"--etcd-servers={ours}", "--bind-address=127.0.0.1", f"--secure-port={secure}", f"--cert-dir={scratch}/certificates", f"--token-auth-file={scratch}/tokens.csv", "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}", "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none", "--authorization-mode=RBAC"],
        ]  # fmt: skip
        if controllers:
            alone = [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
            # Nobody tells of the nodes' health, and nobody is to be evicted for that.
            without = "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller"
            commands += [[binaries["kube-controller-manager"], *alone, without, f"--service-account-private-key-file={key}"], [binaries["kube-scheduler"], *alone]]
        for command in commands:
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            if command[0] == binaries["kube-apiserver"]:
                cluster = Cluster(address, str(kubeconfig))
                until(lambda: cluster.kubectl("get", "--raw", "/readyz").returncode == 0, 120, f"the API server: {(scratch / 'log').read_text()[-2000:]}")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        cluster.must("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
        if not controllers or not said:
            yield cluster
            return
        containers = Containers(cluster)
        thread = threading.Thread(target=containers.run, daemon=True)
        thread.start()
        try:
            yield cluster, containers
        finally:
            containers.ended.set()
            thread.join()
