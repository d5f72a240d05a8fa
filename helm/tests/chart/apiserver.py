"""A stand-in for an API server: it keeps what Helm sends it and refuses to change immutable fields. It knows no schemas, no
controllers and no admission; with it one sees what Helm does with the chart over an object's life, and no more."""

import base64
import contextlib
import http.server
import json
import tempfile
import threading
import urllib.parse

import yaml

RESOURCES = {
    "v1": {"secrets": "Secret", "configmaps": "ConfigMap", "services": "Service", "serviceaccounts": "ServiceAccount", "pods": "Pod"},
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
}
IMMUTABLE = {
    "Deployment": ("selector",),
    "StatefulSet": ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"),
}


def merge(old, patch):
    """A strategic merge, as far as Helm's patches of this chart need it: lists of named things merge by name."""
    result = dict(old)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merge(result.get(key) or {}, value)
        elif isinstance(value, list) and value and isinstance(value[0], dict) and "name" in value[0]:
            named = {item["name"]: item for item in result.get(key) or []}
            for item in value:
                if item.get("$patch") == "delete":
                    named.pop(item["name"], None)
                else:
                    named[item["name"]] = merge(named.get(item["name"], {}), item)
            result[key] = list(named.values())
        else:
            result[key] = value
    return result


def fields(message):
    """(number, bytes or integer) of a protobuf message."""
    at = 0

    def integer():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = integer()
        if tag & 7 == 2:
            length = integer()
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            yield tag >> 3, integer()


def secret(message):
    """A Secret in protobuf, as Helm sends its own record of a release."""

    def pairs(number, parent):
        entries = [dict(fields(each)) for of, each in parent if of == number]
        return {entry[1].decode(): entry.get(2, b"") for entry in entries}

    raw = list(fields(dict(fields(message))[2]))
    metadata = list(fields(dict(raw)[1]))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": dict(raw)[3].decode(),
        "metadata": {"name": dict(metadata)[1].decode(), "labels": {key: value.decode() for key, value in pairs(11, metadata).items()}},
        "data": {key: base64.b64encode(value).decode() for key, value in pairs(2, raw).items()},
    }


class Refused(Exception):
    """A status other than success."""

    def __init__(self, code, reason, message=""):
        super().__init__(message)
        self.code, self.reason = code, reason


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def discovery(self, path):
        if path == "/version":
            return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            versions = {name.split("/")[0]: {"groupVersion": name, "version": name.split("/")[1]} for name in RESOURCES if "/" in name}
            groups = [{"name": group, "versions": [version], "preferredVersion": version} for group, version in versions.items()]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        name = path.removeprefix("/apis/").removeprefix("/api/")
        if name in RESOURCES:
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            listed = [{"name": plural, "kind": kind, "namespaced": True, "verbs": verbs} for plural, kind in RESOURCES[name].items()]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": listed}
        return None

    def answer(self, method):
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if method == "DELETE":
            body = b""
        content = secret(body[4:]) if body.startswith(b"k8s\0") else yaml.safe_load(body or b"{}")
        found = self.discovery(url.path)
        if found:
            return found
        parts = url.path.strip("/").split("/")
        if "namespaces" not in parts or len(parts) < parts.index("namespaces") + 3:
            raise Refused(404, "NotFound")
        at = parts.index("namespaces")
        version, plural, name = "/".join(parts[1:at]), parts[at + 2], "/".join(parts[at + 3 :])
        kind = RESOURCES.get(version, {}).get(plural)
        if not kind:
            raise Refused(404, "NotFound")
        if not name and method == "GET":
            wanted = dict(pair.split("=") for pair in dict(urllib.parse.parse_qsl(url.query)).get("labelSelector", "").split(",") if "=" in pair)
            items = [item for (of, _), item in self.server.objects.items() if of == kind and wanted.items() <= item["metadata"].get("labels", {}).items()]
            return {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items}
        return self.write(method, kind, name or content["metadata"]["name"], content)

    def write(self, method, kind, name, content):
        objects, key = self.server.objects, (kind, name)
        old = objects.get(key)
        if method == "POST" and old:
            raise Refused(409, "AlreadyExists", f"{kind} {name} exists")
        applied = "apply-patch" in self.headers.get("Content-Type", "")
        if method != "POST" and not old and not applied:
            raise Refused(404, "NotFound", f"no {kind} {name}")
        if method == "DELETE":
            return objects.pop(key)
        if method in ("POST", "PUT", "PATCH"):
            new = merge(old, content) if method == "PATCH" and not applied else content
            for field in IMMUTABLE.get(kind, ()):
                if old and old["spec"].get(field) != new["spec"].get(field):
                    raise Refused(422, "Invalid", f"{kind} {name}: spec.{field} is immutable")
            objects[key] = new
        return objects[key]

    def handle_method(self):
        status = 200
        try:
            answer = self.answer(self.command)
        except Refused as refused:
            status = refused.code
            answer = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": refused.reason, "message": str(refused), "code": status}
        body = json.dumps(answer, default=str).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_method

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running():
    """(objects by kind and name, path of a kubeconfig)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.objects = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as kubeconfig:
            address = f"http://127.0.0.1:{server.server_port}"
            json.dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": address}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
            }, kubeconfig)  # fmt: skip
            kubeconfig.flush()
            yield server.objects, kubeconfig.name
    finally:
        server.shutdown()
