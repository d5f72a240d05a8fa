"""A real API server on a real etcd: schemas, defaults, admission, immutable fields. Without a kubelet nothing runs."""

import io
import json
import pathlib
import subprocess
import tarfile
import tempfile

from chart import cluster, render, tools
from chart.checks.shape import CUSTOM
from chart.checks.upgrade import Release
from chart.registry import Skip, check, equal

KINDS = "deployments,statefulsets,services,configmaps,secrets,serviceaccounts,poddisruptionbudgets,networkpolicies,horizontalpodautoscalers"

# 1.34 says so although the field is not set.
OF_EVERY_HEADLESS_SERVICE = "spec.SessionAffinity is ignored for headless services"


@check("K2", "a real API server takes every preset and scenario, and admits the pods under PodSecurity restricted")
def taken():
    with cluster.running() as running:
        kubectl = running.kubectl
        # What a scenario names, and only a cluster's owner has.
        kubectl("create", "priorityclass", "high", "--value=1")
        runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "kata"}, "handler": "kata"}
        kubectl("create", "-f", "-", text=json.dumps(runtime))
        kubectl("create", "serviceaccount", "default", "-n", "wal")
        for name, objects in render.every_render(kubernetes="1.34"):
            known = [item for item in objects if item["kind"] not in (*CUSTOM, "Pod")]
            pods = [
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}", "namespace": "wal", "labels": metadata["labels"]}, "spec": spec | {"serviceAccountName": "default"}}
                for number, (_, metadata, spec) in enumerate(render.pods(objects))
            ]
            for item in known:
                status, said = running.would_take(item)
                assert status == 201, f"{name}: {item['kind']} {item['metadata']['name']}: {status} {said}"
            # A Deployment's pods are admitted when they are made; a volume of a claim template has no claim here.
            for pod in pods:
                claims = {mount["name"] for container in render.containers(pod["spec"]) for mount in container.get("volumeMounts", [])}
                missing = claims - {volume["name"] for volume in pod["spec"].get("volumes", [])}
                pod["spec"] = pod["spec"] | {"volumes": pod["spec"].get("volumes", []) + [{"name": claim, "emptyDir": {}} for claim in missing]}
                status, said = running.would_take(pod)
                assert status == 201, f"{name} {pod['metadata']['labels']}: {status} {said}"
            warnings = {warning for warning in running.warned if OF_EVERY_HEADLESS_SERVICE not in warning}
            assert not warnings, f"{name}: {warnings}"
        bad = pods[0] | {"spec": pods[0]["spec"] | {"hostNetwork": True}}
        assert "violates PodSecurity" in running.would_take(bad)[1], "the namespace enforces nothing"


def secrets(kubectl):
    """What Helm made itself."""
    items = json.loads(kubectl("get", "secrets", "-n", "wal", "-l", "app.kubernetes.io/instance=s", "-o", "json").stdout)["items"]
    found = {item["metadata"]["name"]: item["data"] for item in items}
    equal(sorted(found), ["s-streaming-auth", "s-streaming-s3", "s-streaming-tls"])
    return found


# The chart before resource groups and the role `replicate` came, in this repository's history.
EARLIER = "788691101a"


def earlier_chart(scratch):
    """The directory of that chart."""
    archive = subprocess.run(["git", "archive", EARLIER, "helm/streaming"], cwd=tools.ROOT, capture_output=True)
    if archive.returncode:
        raise Skip(f"the history does not reach back to {EARLIER}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(scratch, filter="data")
    chart = pathlib.Path(scratch, "helm", "streaming")
    assert "resourceGroups" not in (chart / "values.yaml").read_text()
    return chart


@check("K36", "a release of an earlier chart is upgraded to this one, with its old values and with new ones, on a real API server, by Helm 3 and 4")
def upgraded():
    secured = render.merged(render.QUORUM, {"tls": {"enabled": True}, "auth": {"enabled": True}, "networkPolicy": {"enabled": True}})
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with tempfile.TemporaryDirectory() as scratch, cluster.running() as running:
            release = Release(helm, running.kubeconfig)
            release.must("install", "s", earlier_chart(scratch), values=secured)
            kept = secrets(running.kubectl)
            release.must("upgrade", "s", render.CHART, "--reuse-values")
            release.must("upgrade", "s", render.CHART, "--reset-then-reuse-values", "--set", "replicate.enabled=true")
            equal(secrets(running.kubectl), kept, "certificate, tokens and keys after the upgrade")
            deployed = running.kubectl("get", "deployments,statefulsets", "-n", "wal", "-o", "name").stdout.split()
            workloads = {"deployment.apps": ("coord", "node", "replicate"), "statefulset.apps": ("etcd", "logstore", "s3")}
            equal(sorted(deployed), sorted(f"{kind}/s-streaming-{role}" for kind, roles in workloads.items() for role in roles))
            release.must("rollback", "s", "1")
            release.must("uninstall", "s")


@check("K37", "install, upgrade, a refused scale-down, roll-back and removal on a real API server, by Helm 3 and 4")
def life():
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with cluster.running() as running:
            kubectl, release = running.kubectl, Release(helm, running.kubeconfig)
            four = render.merged(render.QUORUM, {"logstore": {"replicas": 4}, "tls": {"enabled": True}, "auth": {"enabled": True}})
            release.must("install", "s", render.CHART, values=four)
            kept = secrets(kubectl)
            release.must("upgrade", "s", render.CHART, "--reuse-values", "--set", "node.replicas=5")
            done = release.run("upgrade", "s", render.CHART, values=render.QUORUM)
            assert done.returncode != 0 and "logstore.replicas: from 4 to 3" in done.stderr, done.stderr
            equal(secrets(kubectl), kept, "certificate, tokens and keys after an upgrade")
            release.must("rollback", "s", "1")
            equal(json.loads(kubectl("get", "deployment", "s-streaming-node", "-n", "wal", "-o", "json").stdout)["spec"]["replicas"], 2)
            release.must("uninstall", "s")
            equal(kubectl("get", KINDS, "-n", "wal", "-l", "app.kubernetes.io/instance=s", "-o", "name").stdout, "", "what is left")
