"""The chart on a real machine: containers that really run, under a real kubelet."""

import json
import pathlib
import subprocess
import threading
import time
import urllib.request

from chart import cluster, machine, render, tools
from chart.checks.controllers import claims
from chart.checks.process import until
from chart.checks.upgrade import Release
from chart.registry import check, equal

CHANNEL = "by-dev-rootcoord-dml_1"
PRESETS = ["-f", render.CHART / "values-dev.yaml", "-f", render.CHART / "values-quorum.yaml"]
# One small machine has them all.
LITTLE = {"requests": {"cpu": "20m", "memory": "32Mi"}}
VALUES = {
    "coord": {"replicas": 2, "resources": LITTLE},
    "node": {"replicas": 2, "resources": LITTLE},
    # The disk here may be fuller than a claim is.
    "logstore": {"minReadySeconds": 1, "resources": LITTLE, "config": {"woodpecker": {"logstore": {"disk": {"softUsed": 0.98, "hardUsed": 0.99}}}}},
}


class Exits(threading.Thread):
    """Follows the pods, and notes how each container ended."""

    def __init__(self, running):
        super().__init__(daemon=True)
        self.running, self.codes = running, {}

    def run(self):
        request = urllib.request.Request(f"{self.running.address}/api/v1/namespaces/wal/pods?watch=1&timeoutSeconds=3600", headers={"Authorization": "Bearer token"})
        with urllib.request.urlopen(request, context=cluster.UNVERIFIED) as stream:
            for line in stream:
                pod = json.loads(line)["object"]
                for each in pod.get("status", {}).get("containerStatuses", []):
                    for state in (each["state"], each.get("lastState", {})):
                        if "terminated" in state:
                            self.codes[pod["metadata"]["name"], each["name"], state["terminated"]["containerID"]] = state["terminated"]["exitCode"]


class Lines:
    """Appends numbers, one after the other, until it is told to stop."""

    def __init__(self, etcd):
        self.etcd = ["--etcd", f"{etcd}:2379"]
        self.process = subprocess.Popen([tools.streaming(), "produce", CHANNEL, *self.etcd], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.written, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self):
        while not self.ended.wait(0.02):
            self.process.stdin.write(f"{self.written}\n")
            self.process.stdin.flush()
            self.written += 1

    def stop(self):
        """All that was appended and acked, as it is read back."""
        self.ended.set()
        self.thread.join()
        _, said = self.process.communicate(timeout=120)
        equal(self.process.returncode, 0, said)
        read = [tools.streaming(), "consume", CHANNEL, *self.etcd, "--from", "earliest", "--count", str(self.written), "--until-idle", "20s"]
        return subprocess.run(read, capture_output=True, text=True, timeout=180).stdout


def locked_down():
    """How many of our processes there are; each must be one that PodSecurity restricted means."""
    found = 0
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        if (process / "cmdline").read_bytes().startswith(b"/usr/local/bin/streaming\0"):
            state = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
            equal((state["Uid"].split()[1], state["Gid"].split()[1], int(state["CapEff"], 16), state["NoNewPrivs"], state["Seccomp"]), ("65532", "65532", 0, "1", "2"))
            equal(state["NSpid"].split()[-1], "1", "the process in its container")
            root = next(line.split() for line in (process / "mounts").read_text().splitlines() if line.split()[1] == "/")
            assert "ro" in root[3].split(","), f"the root is {root[3]}"
            found += 1
    return found


def lived(running, real):
    volumes = real.scratch / "volumes"
    for number in range(3):
        (volumes / str(number)).mkdir(parents=True)
        (volumes / str(number)).chmod(0o777)
        running.volume(f"v{number}", volumes / str(number))
    release = Release(tools.OLDEST_AND_NEWEST[1], running.kubeconfig)
    exits = Exits(running)
    exits.start()
    begun = time.monotonic()
    release.must("install", "s", render.CHART, *PRESETS, "--wait", "--timeout", "100s", values=VALUES)
    print(f"installed after {time.monotonic() - begun:.0f} s")
    release.must("test", "s", "--timeout", "90s")
    equal(locked_down(), 7, "processes")
    before = claims(running)
    etcd = next(pod for pod in running.pods("etcd"))["status"]["podIP"]
    lines = Lines(etcd)
    release.must("upgrade", "s", render.CHART, "--reuse-values", "--set", "image.tag=2.0.0", "--wait", "--timeout", "110s")
    running.must("DELETE", "/api/v1/namespaces/wal/pods/s-streaming-logstore-1", {"gracePeriodSeconds": 0})
    until(lambda: all(map(cluster.is_ready, running.pods())) and len(running.pods("logstore")) == 3, 60, "all ready after a log store was killed")
    equal({pod["spec"]["containers"][0]["image"] for role in ("coord", "node", "logstore") for pod in running.pods(role)}, {"streaming:2.0.0"})
    equal(lines.stop(), "".join(f"{number}\n" for number in range(lines.written)), "what was appended meanwhile")
    assert lines.written > 100, f"{lines.written} lines only"
    equal(claims(running), before, "claims")
    stopped = {key: code for key, code in exits.codes.items() if key[0] != "s-streaming-test"}
    assert len(stopped) >= 7, f"how only {stopped} ended was seen"
    killed = {key for key in stopped if key[0] == "s-streaming-logstore-1"}
    equal({key: code for key, code in stopped.items() if code and key not in killed}, {}, "exit codes")
    print(f"{lines.written} lines, {len(stopped)} containers ended")
    release.must("uninstall", "s", "--wait", "--timeout", "60s")
    until(lambda: not running.pods(), 60, "no pods")
    equal(claims(running), before, "claims after removal")


def life(scratch):
    with machine.running(scratch) as (running, real):
        try:
            lived(running, real)
        except BaseException:
            print(running.kubectl("get", "pods", "-A", "-o", "wide").stdout, real.told()[-4000:])
            raise


@check("K38", "a real kubelet runs the presets dev and quorum: installed and ready, `helm test`, processes locked down, all roles rolled and a log store killed amid appends, nothing lost, every stop with 0, claims kept")
def real_machine():
    machine.inside(life)
