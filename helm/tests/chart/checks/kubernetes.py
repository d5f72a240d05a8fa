"""A real API server on a real etcd: schemas, defaults, admission, immutable fields. Without a kubelet nothing runs."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from chart import render, tools
from chart.checks.process import free_ports, until
from chart.checks.shape import CUSTOM
from chart.checks.upgrade import Release
from chart.registry import Skip, check, equal

KINDS = "deployments,statefulsets,services,configmaps,secrets,serviceaccounts,poddisruptionbudgets,networkpolicies,horizontalpodautoscalers"

# 1.34 says so although the field is not set.
OF_EVERY_HEADLESS_SERVICE = {"Warning: spec.SessionAffinity is ignored for headless services"}


@contextlib.contextmanager
def api_server():
    """(kubectl as a function, path of a kubeconfig); a namespace `wal` that enforces PodSecurity restricted."""
    binary = tools.apiserver()
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
        peers = f"http://127.0.0.1:{peer}"
        commands = [
            ["etcd", "--data-dir", scratch / "etcd", "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls", f"http://127.0.0.1:{client}", "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"],
            [binary, f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1", f"--secure-port={secure}", f"--cert-dir={scratch}/certificates", f"--token-auth-file={scratch}/tokens.csv", "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={scratch}/accounts.key", f"--service-account-signing-key-file={scratch}/accounts.key", "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none", "--authorization-mode=RBAC"],
        ]  # fmt: skip
        for command in commands:
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)

        def kubectl(*arguments, text=None):
            return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, env={**os.environ, "KUBECONFIG": str(kubeconfig)})

        until(lambda: kubectl("get", "--raw", "/readyz").returncode == 0, 120, f"the API server: {(scratch / 'log').read_text()[-2000:]}")
        kubectl("create", "namespace", "wal")
        kubectl("label", "namespace", "wal", *(f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")))
        yield kubectl, str(kubeconfig)


@check("K2", "a real API server takes every preset and scenario, and admits the pods under PodSecurity restricted")
def taken():
    with api_server() as (kubectl, _):
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
            done = kubectl("create", "--dry-run=server", "-n", "wal", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": known}))
            warnings = {line for line in done.stderr.splitlines() if line not in OF_EVERY_HEADLESS_SERVICE}
            assert done.returncode == 0 and not warnings, f"{name}: {done.stderr}"
            # A Deployment's pods are admitted when they are made; a volume of a claim template has no claim here.
            for pod in pods:
                claims = {mount["name"] for container in render.containers(pod["spec"]) for mount in container.get("volumeMounts", [])}
                missing = claims - {volume["name"] for volume in pod["spec"].get("volumes", [])}
                pod["spec"] = pod["spec"] | {"volumes": pod["spec"].get("volumes", []) + [{"name": claim, "emptyDir": {}} for claim in missing]}
                done = kubectl("create", "--dry-run=server", "-n", "wal", "-f", "-", text=json.dumps(pod))
                assert done.returncode == 0, f"{name} {pod['metadata']['labels']}: {done.stderr}"


def secrets(kubectl):
    """What Helm made itself."""
    items = json.loads(kubectl("get", "secrets", "-n", "wal", "-l", "app.kubernetes.io/instance=s", "-o", "json").stdout)["items"]
    found = {item["metadata"]["name"]: item["data"] for item in items}
    equal(sorted(found), ["s-streaming-auth", "s-streaming-s3", "s-streaming-tls"])
    return found


@check("K37", "install, upgrade, a refused scale-down, roll-back and removal on a real API server, by Helm 3 and 4")
def life():
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with api_server() as (kubectl, kubeconfig):
            release = Release(helm, kubeconfig)
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
