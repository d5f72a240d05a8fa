"""What an upgrade may and may not do."""

import http.server
import json
import tempfile
import threading

from chart import render
from chart.registry import check, equal

IMMUTABLE = {"Deployment": ("selector",), "StatefulSet": ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy")}


@check("R36", "no value that may change at an upgrade touches an immutable field")
def immutable():
    def fixed(values):
        objects = render.template(render.merged(render.QUORUM, values))
        return {
            (item["kind"], item["metadata"]["name"], field): item["spec"][field]
            for item in render.of_kind(objects, *IMMUTABLE)
            for field in IMMUTABLE[item["kind"]]
            if field in item["spec"]
        }

    before = fixed({})
    for values in [
        {"image": {"tag": "9.9.9"}},
        {"commonLabels": {"a": "b"}, "commonAnnotations": {"c": "d"}},
        {"node": {"replicas": 9, "podLabels": {"x": "y"}}, "logstore": {"replicas": 5, "podLabels": {"x": "y"}}},
        {"config": {"rootCoord": {"dmlChannelNum": 3}}},
        {"networkPolicy": {"enabled": True}, "metrics": {"serviceMonitor": {"enabled": True}}},
    ]:
        equal(fixed(values), before, f"after {values}")


class Cluster(http.server.BaseHTTPRequestHandler):
    """As much of an API server as `lookup` needs: one StatefulSet with three log stores."""

    GROUPS = {"v1": [("secrets", "Secret")], "apps/v1": [("statefulsets", "StatefulSet")]}

    def do_GET(self):
        path = self.path.split("?")[0]
        status, answer = 200, None
        resources = {("/api/" if version == "v1" else "/apis/") + version: version for version in self.GROUPS}
        if path == "/version":
            answer = {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        elif path == "/api":
            answer = {"kind": "APIVersions", "versions": ["v1"]}
        elif path == "/apis":
            version = {"groupVersion": "apps/v1", "version": "v1"}
            answer = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "apps", "versions": [version], "preferredVersion": version}]}
        elif path in resources:
            listed = [{"name": name, "kind": kind, "namespaced": True, "verbs": ["get"]} for name, kind in self.GROUPS[resources[path]]]
            answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": resources[path], "resources": listed}
        elif path.endswith("/statefulsets/s-streaming-logstore"):
            answer = {"kind": "StatefulSet", "apiVersion": "apps/v1", "metadata": {"name": "s-streaming-logstore"}, "spec": {"replicas": 3}}
        else:
            status, answer = 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@check("R27", "a running cluster's log stores are not taken away without logstore.allowScaleDown")
def scale_down():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as kubeconfig:
            json.dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
            }, kubeconfig)  # fmt: skip
            kubeconfig.flush()

            def upgraded(values):
                arguments = ["template", "s", render.CHART, "-n", "wal", "--dry-run=server"]
                return render.run_helm(render.DEFAULT, *arguments, values=values, environment={"KUBECONFIG": kubeconfig.name})

            two = {"logstore": {"enabled": True, "replicas": 2}}
            for values, message in [(two, "from 3 to 2"), ({}, "from 3 to 0")]:
                done = upgraded(values)
                assert done.returncode != 0 and f"logstore.replicas: {message}" in done.stderr, f"{values}: {done.stderr[-500:]}"
            for values in [render.QUORUM, render.merged(render.QUORUM, {"logstore": {"replicas": 4}}), render.merged(two, {"logstore": {"allowScaleDown": True}})]:
                done = upgraded(values)
                assert done.returncode == 0, f"{values}: {done.stderr}"
    finally:
        server.shutdown()
