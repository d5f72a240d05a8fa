"""TLS and tokens: what is rendered for them, and rendered roles that use them."""

import base64
import contextlib
import json
import re
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from chart import render
from chart.checks.process import ANYBODY, inside, run_test_pod, scratch_cluster, status, until, until_ready, values
from chart.registry import check, equal

ON = {"tls": {"enabled": True}, "auth": {"enabled": True}}
ROLES = (("coord", "Deployment"), ("node", "Deployment"), ("logstore", "StatefulSet"))


def secret_volumes(spec):
    """{volume: (Secret, {key: file})} of a pod."""
    found = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    return {name: (volume["secretName"], {item["key"]: item["path"] for item in volume["items"]}) for name, volume in found.items()}


@check("R43", "TLS and tokens reach file, mounts, the test pod and the ServiceMonitor; Secrets of one's own by their own keys; what Helm makes fits together")
def rendered():
    own = {
        "tls": {"enabled": True, "minVersion": "TLS1.3", "existingSecret": "mine", "caKey": "a", "certKey": "c", "keyKey": "k", "serverName": "wal.example.com", "admin": {"enabled": False}},
        "auth": {"enabled": True, "existingSecret": "theirs", "tokensKey": "all", "tokenKey": "one"},
        "metrics": {"serviceMonitor": {"enabled": True}},
    }
    objects = render.template(render.merged(render.QUORUM, own))
    equal([item["metadata"]["name"] for item in render.of_kind(objects, "Secret")], ["s-streaming-s3"])
    for role, kind in ROLES:
        file = render.configuration(objects, role)
        equal((file["tls"]["serverName"], file["tls"]["minVersion"], file["tls"]["admin"], file["auth"]["enabled"]), ("wal.example.com", "TLS1.3", {"enabled": False}, True), role)
        spec = render.named(objects, kind, f"s-streaming-{role}")["spec"]["template"]["spec"]
        wanted = {"tls": ("mine", {"a": "ca.crt", "c": "tls.crt", "k": "tls.key"}), "auth": ("theirs", {"all": "tokens", "one": "token"})}
        equal(secret_volumes(spec), wanted, role)
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"] if "subPath" not in mount}
        for files in (file["tls"]["cert"], file["tls"]["key"], file["tls"]["ca"], file["auth"]["tokensFile"], file["auth"]["tokenFile"]):
            assert files.rsplit("/", 1)[0] in mounts.values(), f"{role}: {files} is not mounted"
        equal(spec["containers"][0]["readinessProbe"]["httpGet"]["scheme"], "HTTP", role)
    test = render.named(objects, "Pod", "s-streaming-test")["spec"]
    equal(secret_volumes(test)["auth"], ("theirs", {"one": "token"}), "the test pod gets one token")
    assert "scheme" not in render.of_kind(objects, "ServiceMonitor")[0]["spec"]["endpoints"][0]
    managed = render.template(files=[render.CHART / "ci/tls-cert-manager-values.yaml"])
    certificate = render.of_kind(managed, "Certificate")[0]["spec"]
    equal((certificate["secretName"], certificate["issuerRef"]), ("s-streaming-tls", {"name": "internal", "kind": "ClusterIssuer", "group": "cert-manager.io"}))
    assert {"server auth", "client auth"} <= set(certificate["usages"])
    names = {render.configuration(managed, "node")["tls"]["serverName"], "s-streaming-coord.wal.svc", "*.s-streaming-logstore.wal.svc.cluster.local"}
    assert names <= set(certificate["dnsNames"]), certificate["dnsNames"]
    equal(render.of_kind(managed, "Secret"), [])
    endpoint = render.of_kind(managed, "ServiceMonitor")[0]["spec"]["endpoints"][0]
    equal((endpoint["scheme"], endpoint["tlsConfig"]["serverName"]), ("https", "s-streaming.wal.svc"))
    equal(endpoint["tlsConfig"]["ca"]["secret"], {"name": "s-streaming-tls", "key": "ca.crt"})
    made = render.template(ON)
    data = {name: decoded(made, name) for name in ("s-streaming-tls", "s-streaming-auth")}
    lines = data["s-streaming-auth"]["tokens"].split("\n")
    equal(lines, [f"admin {data['s-streaming-auth']['token']}", *(f"{role} {data['s-streaming-auth'][role]}" for role in ("write", "read")), ""])
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in data["s-streaming-tls"].items():
            with open(f"{scratch}/{name}", "w") as file:
                file.write(text)
        for purpose in ("sslserver", "sslclient"):
            words = ["openssl", "verify", "-purpose", purpose, "-verify_hostname", "s-streaming.wal.svc", "-CAfile", f"{scratch}/ca.crt", f"{scratch}/tls.crt"]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, f"{purpose}: {done.stdout}{done.stderr}"


def decoded(objects, name):
    return {key: base64.b64decode(value).decode() for key, value in render.named(objects, "Secret", name)["data"].items()}


def client(cluster, objects, *words, **changed):
    """A verb as the test pod would call it, with variables changed or, with None, taken away."""
    container = render.named(objects, "Pod", "s-streaming-test")["spec"]["containers"][0]
    command, environment = cluster.container(container)
    environment = {name: value for name, value in (environment | changed).items() if value is not None}
    return subprocess.run([command[0], *words, "--timeout", "5s"], env=environment, capture_output=True, text=True)


def speaks(address, version):
    """Whether an admin port, which asks for no certificate, speaks a version of TLS."""
    context = ssl._create_unverified_context()
    context.minimum_version = context.maximum_version = version
    try:
        with urllib.request.urlopen(address + "/livez", timeout=5, context=context) as answer:
            return answer.status == 200
    except OSError:
        return False


def shown(port):
    """The certificate at a port, None if there is no TLS."""
    with contextlib.suppress(OSError):
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


@contextlib.contextmanager
def secured_cluster():
    """(the cluster, its ports, its objects, {role: process and admin address}, what was added to the values), with mutual TLS and tokens."""
    more = render.merged(ON, {"tls": {"clientAuth": "required", "minVersion": "TLS1.3"}, "config": {"common": {"reloadInterval": "1s"}}})
    with scratch_cluster(more) as (cluster, ports, objects):
        cluster.etcd(*ports[:2])
        cluster.s3(ports[2], ports[9:])
        running = {role: cluster.role(objects, role) for role in ("coord", "node")}
        until_ready(cluster, objects, running)
        run_test_pod(cluster, objects)
        yield cluster, ports, objects, running, more


def counted(address, reason):
    """How many a process says that it refused for a reason."""
    with urllib.request.urlopen(address + "/metrics", timeout=5, context=ANYBODY) as answer:
        text = answer.read().decode()
    name = "streaming_tls_handshakes_failed_total" if reason == "handshake" else f'streaming_auth_refused_total{{reason="{reason}"}}'
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)[1])


@check("P33", "mutual TLS and tokens as rendered: plaintext, TLS 1.2 where 1.3 is wanted, no certificate, another authority, no token, a wrong one and one of a smaller role are refused, over gRPC and HTTP, logged with the peer and counted")
def refused():
    with secured_cluster() as (cluster, _, objects, running, _):
        for role, (_, address) in running.items():
            equal(status(address.replace("https", "http") + "/livez"), None, f"{role}: the admin port in plaintext")
            equal([speaks(address, version) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)], [False, True], f"{role}: TLS 1.2 and 1.3")
        done = client(cluster, objects, "channels")
        assert done.returncode == 0, done.stderr
        for role in running:
            for verb in ("channels", "health"):
                inside(cluster, objects, role, verb)
        (cluster.scratch / "wrong").write_text("nobody-knows-this-token-of-mine")
        (cluster.scratch / "read").write_text(decoded(objects, "s-streaming-auth")["read"])
        (cluster.scratch / "line").write_text("one\n")
        other = cluster.scratch / "other-ca"
        other.write_text(decoded(render.template(ON, name="other"), "other-streaming-tls")["ca.crt"])
        plain = dict.fromkeys(("STREAMING_CA", "STREAMING_SERVER_NAME", "STREAMING_CERT", "STREAMING_KEY"))
        look, append = ["channels"], ["produce", "by-dev-rootcoord-dml_0", "--file", cluster.scratch / "line"]
        cases = [
            ("plaintext", "coord", look, plain, "", "handshake"),
            ("no certificate", "coord", look, dict.fromkeys(("STREAMING_CERT", "STREAMING_KEY")), "", "handshake"),
            ("another authority", "coord", look, {"STREAMING_CA": str(other)}, "", "handshake"),
            ("no token", "coord", look, {"STREAMING_TOKEN_FILE": None}, "no bearer token", "no_token"),
            ("a wrong token", "coord", look, {"STREAMING_TOKEN_FILE": str(cluster.scratch / "wrong")}, "not known here", "wrong_token"),
            ("a smaller role", "node", append, {"STREAMING_TOKEN_FILE": str(cluster.scratch / "read")}, "needs", "role"),
        ]
        for what, role, words, changed, why, reason in cases:
            before = counted(running[role][1], reason)
            logged = len(cluster.whole_log(role))
            # One line a second is logged: what is refused within the same one is only counted.
            time.sleep(1.1)
            done = client(cluster, objects, *words, **changed)
            assert done.returncode != 0 and why in done.stderr, f"{what}: {done.stdout}{done.stderr}"
            assert counted(running[role][1], reason) > before, f"{what}: not counted as {reason}"
            lines = [json.loads(line) for line in cluster.whole_log(role)[logged:].splitlines()]
            told = [line for line in lines if f'"{reason}"' in json.dumps(line) and "refused: " in json.dumps(line) and "127.0.0.1:" in json.dumps(line)]
            assert told, f"{what}: not logged as {reason}: {lines}"
        admin, tokens = running["node"][1], decoded(objects, "s-streaming-auth")
        level = {"level": "info"}
        equal(asked(admin, "/log/level", None), 401, "GET without a token")
        equal(asked(admin, "/log/level", "nobody-knows-this-token-of-mine"), 401, "GET with a wrong token")
        equal(asked(admin, "/log/level", tokens["read"]), 200, "GET as read")
        equal(asked(admin, "/log/level", tokens["write"], level), 403, "PUT as write")
        equal(asked(admin, "/log/level", tokens["token"], level), 200, "PUT as admin")
        for role in running:
            text = cluster.whole_log(role)
            equal([name for name, secret in tokens.items() if name != "tokens" and secret in text], [], f"tokens in the log of {role}")


def asked(address, path, token, body=None):
    """The status of a page of the admin port."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(address + path, headers=headers, method="PUT" if body else "GET", data=body and json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=5, context=ANYBODY) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@check("P34", "mutual TLS and tokens as rendered: probes and the test pod pass; changed Secrets are used without a restart, the old ones no more")
def renewed():
    with secured_cluster() as (cluster, ports, objects, running, more):
        _, coord_admin, _, node_admin = ports[3:7]
        new = render.template(render.merged(values(ports[0], ports[2], ports[3:7]), more), kubernetes="1.32")
        before = {port: shown(port) for port in (coord_admin, node_admin)}
        assert all(before.values()), "no certificate on the admin ports"
        for name in ("s-streaming-tls", "s-streaming-auth"):
            assert decoded(new, name) != decoded(objects, name), "the new Secrets are the old ones"
        for role in running:
            cluster.mount(new, render.named(new, "Deployment", f"s-streaming-{role}")["spec"]["template"]["spec"])
        for port in before:
            until(lambda: shown(port) not in (None, before[port]), 30, f"a new certificate on {port}")  # noqa: B023
        run_test_pod(cluster, new)
        (cluster.scratch / "old").write_text(decoded(objects, "s-streaming-auth")["token"])
        done = client(cluster, new, "channels", STREAMING_TOKEN_FILE=str(cluster.scratch / "old"))
        assert done.returncode != 0 and "not known here" in done.stderr, f"the old token: {done.stdout}{done.stderr}"
        for role, (process, _) in running.items():
            assert process.poll() is None, f"{role} ended: {cluster.log(role)}"
