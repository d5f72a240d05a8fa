"""One real machine of a cluster: containerd, runc, a kubelet and a DNS server, in namespaces of their own, in which everything ends
with the first process. Images are made here of the binary and its libraries, so no registry is needed. There is no kube-proxy:
names of Services lead straight to pods."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading

from chart import cluster, tools
from chart.checks.process import until
from chart.registry import Skip

ADDRESS, NODE, CGROUP = "10.77.0.1", "m1", "/streaming-chart"
# As the base image has them. Without any, the client of object storage cannot even be made, plaintext or not.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
PARTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
# What the kubelet would set for the whole machine: it is shown that they are set already.
TUNABLES = {"vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1, "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000}


def libraries(binary):
    """Paths of what the dynamic linker loads, and itself."""
    told = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
    return re.findall(r"(?:=> |^\s*)(/\S+)", told, re.M)


def image(directory, names, binary, path, entrypoint):
    """A Docker archive of an image that holds one binary and what it needs."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for place in ("tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(place)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for source, target in [(binary, path), *((each, each) for each in (AUTHORITIES, *libraries(binary)))]:
            tar.add(os.path.realpath(source), target.lstrip("/"), filter=lambda entry: entry.replace(mode=0o755, uid=0, gid=0))
    layer = layer.getvalue()
    config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": entrypoint, "User": "65532:65532", "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
    config = json.dumps(config).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": names, "Layers": ["layer.tar"]}]
    archive = pathlib.Path(directory, f"{name}.tar")
    with tarfile.open(archive, "w") as tar:
        for file, content in ((f"{name}.json", config), ("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive


class Names(threading.Thread):
    """A DNS server for the names of Services and of their pods, asked from the API whenever it is asked."""

    def __init__(self, running):
        super().__init__(daemon=True)
        self.running, self.socket = running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ADDRESS, 53))

    def addresses(self, name):
        """None if there is no such name."""
        match = re.fullmatch(r"(?:([^.]+)\.)?([^.]+)\.wal\.svc\.cluster\.local", name)
        if not match:
            return None
        pod, service = match.groups()
        status, found = self.running.call("GET", f"/api/v1/namespaces/wal/services/{service}")
        if status != 200:
            return None
        wanted, early = found["spec"]["selector"], found["spec"].get("publishNotReadyAddresses")
        pods = [each for each in self.running.pods() if wanted.items() <= each["metadata"]["labels"].items() and each["status"].get("podIP") and (early or cluster.is_ready(each))]
        return [each["status"]["podIP"] for each in pods if pod in (None, each["metadata"]["name"])] or None

    def run(self):
        while True:
            query, peer = self.socket.recvfrom(2048)
            with contextlib.suppress(Exception):
                labels, at = [], 12
                while query[at]:
                    labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
                    at += query[at] + 1
                kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
                found = self.addresses(".".join(labels))
                answers = found if found and kind == 1 else []
                head = query[:2] + struct.pack(">HHHHH", 0x8580 | (0 if found else 3), 1, len(answers), 0, 0)
                records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(each) for each in answers)
                self.socket.sendto(head + query[12 : at + 5] + records, peer)


class Machine:
    def __init__(self, scratch, stack):
        self.scratch, self.stack = pathlib.Path(scratch), stack
        self.tools = tools.containers()

    def start(self, name, *command):
        log = self.stack.enter_context(open(self.scratch / f"{name}.log", "w"))
        environment = {**os.environ, "PATH": f"{self.tools}/usr/bin:{self.tools}/usr/sbin:{os.environ['PATH']}"}
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def log(self, name):
        return (self.scratch / f"{name}.log").read_text()[-4000:]

    def told(self, lines=15):
        """What the containers said last."""
        files = sorted(self.scratch.glob("pods/*/*/*.log"))
        return "\n".join(f"--- {file.relative_to(self.scratch)}\n" + "\n".join(file.read_text().splitlines()[-lines:]) for file in files)

    def ctr(self, *words):
        return subprocess.run([self.tools / "usr/bin/ctr", "--address", self.scratch / "containerd.sock", "-n", "k8s.io", *words], capture_output=True, text=True)

    def containerd(self):
        network = {"cniVersion": "0.4.0", "name": "wal", "plugins": [{"type": "bridge", "bridge": "wal0", "ipMasq": False, "isGateway": False, "ipam": {"type": "host-local", "dataDir": str(self.scratch / "addresses"), "ranges": [[{"subnet": "10.77.0.0/16", "rangeStart": "10.77.1.1", "rangeEnd": "10.77.1.250", "gateway": ADDRESS}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}  # fmt: skip
        (self.scratch / "cni").mkdir()
        (self.scratch / "cni" / "10-wal.conflist").write_text(json.dumps(network))
        (self.scratch / "containerd.toml").write_text(f"""
version = 2
root = "{self.scratch}/containerd"
state = "{self.scratch}/state"
[grpc]
  address = "{self.scratch}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{self.tools}/usr/lib/cni"
    conf_dir = "{self.scratch}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")
        self.start("containerd", self.tools / "usr/bin/containerd", "--config", self.scratch / "containerd.toml")
        until(lambda: self.ctr("version").returncode == 0, 30, f"containerd: {self.log('containerd')}")
        images = [
            (["docker.io/library/pause:1"], "/usr/bin/sleep", "/bin/sleep", ["/bin/sleep", "infinity"]),
            (["docker.io/library/streaming:0.1.0", "docker.io/library/streaming:2.0.0"], tools.streaming(), "/usr/local/bin/streaming", ["/usr/local/bin/streaming"]),
            (["quay.io/coreos/etcd:v3.5.21"], shutil.which("etcd"), "/usr/local/bin/etcd", ["/usr/local/bin/etcd"]),
            (["docker.io/chrislusf/seaweedfs:4.48"], shutil.which("weed"), "/usr/bin/weed", ["/usr/bin/weed"]),
        ]
        for names, binary, path, entrypoint in images:
            archive = image(self.scratch, names, binary, path, entrypoint)
            done = self.ctr("images", "import", str(archive))
            assert done.returncode == 0, done.stderr
            archive.unlink()

    def kubelet(self, running):
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": ADDRESS, "clusterDNS": [ADDRESS], "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{self.scratch}/containerd.sock", "podLogsDir": str(self.scratch / "pods"),
            "cgroupDriver": "cgroupfs", "cgroupRoot": CGROUP, "cgroupsPerQOS": False, "enforceNodeAllocatable": [], "failSwapOn": False,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}}, "authorization": {"mode": "AlwaysAllow"},
            "evictionHard": {"memory.available": "1Mi"}, "imageGCHighThresholdPercent": 100, "oomScoreAdj": 0,
            "syncFrequency": "5s", "fileCheckFrequency": "5s",
        }  # fmt: skip
        (self.scratch / "kubelet.json").write_text(json.dumps(settings))
        words = [f"--kubeconfig={running.kubeconfig}", f"--root-dir={self.scratch}/kubelet", f"--hostname-override={NODE}", f"--node-ip={ADDRESS}", f"--config={self.scratch}/kubelet.json", f"--cert-dir={self.scratch}/pki", "--node-labels=topology.kubernetes.io/zone=z1"]
        self.start("kubelet", tools.kubernetes("kubelet"), *words)

        def ready():
            status, node = running.call("GET", f"/api/v1/nodes/{NODE}")
            return status == 200 and cluster.is_ready(node)

        until(ready, 60, f"the kubelet: {self.log('kubelet')}")
        running.must("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"taints": []}}, cluster.MERGE)


def isolate(scratch):
    """A network, a /run and tunables of one's own; needs the namespaces that `unshare` made."""

    def run(*words):
        subprocess.run(words, check=True, capture_output=True)

    for words in ("link set lo up", "link add wal0 type bridge", f"addr add {ADDRESS}/16 dev wal0", "link set wal0 up", f"route add default via {ADDRESS} dev wal0"):
        run("ip", *words.split())
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "run", "/run")
    for name, value in TUNABLES.items():
        file = pathlib.Path(scratch, name.replace("/", "-"))
        file.write_text(f"{value}\n")
        run("mount", "--bind", file, f"/proc/sys/{name}")


@contextlib.contextmanager
def running(scratch):
    """A cluster of one real machine, and the machine."""
    isolate(scratch)
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(cluster.running(controllers=True, said=False))
        machine = Machine(scratch, stack)
        machine.containerd()
        Names(up).start()
        machine.kubelet(up)
        yield up, machine


def inside(function):
    """Runs a function of a module, which takes a directory, in namespaces of its own; what it prints, if it fails."""
    if os.geteuid() or not shutil.which("unshare"):
        raise Skip("needs root and unshare, to make a machine's namespaces")
    # What is fetched is fetched here: there, there is no network.
    for needed in (tools.containers, tools.streaming, *(lambda part=part: tools.kubernetes(part) for part in PARTS)):
        needed()
    for version in tools.OLDEST_AND_NEWEST:
        tools.helm(version)
    # Mounts in it end with the namespace, before it is removed.
    with tempfile.TemporaryDirectory() as scratch:
        code = f"import {function.__module__} as m; m.{function.__name__}({scratch!r})"
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True)
        for controller in pathlib.Path("/sys/fs/cgroup").glob("*" + CGROUP):
            for directory in [*sorted((each for each in controller.rglob("*") if each.is_dir()), reverse=True), controller]:
                directory.rmdir()
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
