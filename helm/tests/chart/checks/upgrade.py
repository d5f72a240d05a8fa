"""What a release lives through: installation, upgrades, scaling, roll-back, removal."""

import yaml

from chart import apiserver, render, tools
from chart.registry import check, equal


@check("R36", "no value that may change at an upgrade touches an immutable field")
def immutable():
    def fixed(values):
        objects = render.template(render.merged(render.QUORUM, values))
        return {
            (item["kind"], item["metadata"]["name"], field): item["spec"][field]
            for item in render.of_kind(objects, *apiserver.IMMUTABLE)
            for field in apiserver.IMMUTABLE[item["kind"]]
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


# What a release that was installed by an earlier chart has no values for, under --reuse-values.
EARLIER = {
    "storage": {"also": None},
    "node": {"resourceGroups": None},
    "networkPolicy": {"enabled": True, "identityPeers": None, "followers": None, "followerPorts": None, "collectorPeers": None},
    "replicate": {key: None for key in yaml.safe_load((render.CHART / "values.yaml").read_text())["replicate"] if key != "enabled"},
}


@check("R45", "the values of an earlier chart, which lack what came later, render what they rendered then")
def earlier():
    def shape(values):
        return [(item["kind"], item["metadata"]["name"], item.get("spec")) for item in render.template(values) if item["kind"] != "Secret"]

    equal(shape(EARLIER), shape({"networkPolicy": {"enabled": True}}))


class Release:
    """A release on the stand-in API server."""

    def __init__(self, helm, kubeconfig):
        self.helm, self.environment = helm, {"KUBECONFIG": kubeconfig}

    def run(self, *arguments, values=None):
        return render.run_helm(self.helm, *arguments, "-n", "wal", values=values, environment=self.environment)

    def must(self, *arguments, values=None):
        done = self.run(*arguments, values=values)
        assert done.returncode == 0, f"helm {self.helm} {' '.join(map(str, arguments))}: {done.stderr[-800:]}"

    def upgrade(self, *arguments, values=None):
        self.must("upgrade", "s", render.CHART, "--disable-openapi-validation", *arguments, values=values)


@check("R37", "install, upgrade with old values, roll back, uninstall: Helm 3 and 4, on a stand-in API server")
def life():
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with apiserver.running() as (objects, kubeconfig):
            release = Release(helm, kubeconfig)
            secured = render.merged(render.QUORUM, {"tls": {"enabled": True}, "auth": {"enabled": True}})
            release.must("install", "s", render.CHART, "--disable-openapi-validation", values=secured)
            rendered = {(item["kind"], item["metadata"]["name"]) for item in render.template(secured)}
            hooks = {("ConfigMap", "s-streaming-test"), ("Pod", "s-streaming-test")}
            mine = {key for key in objects if not key[1].startswith("sh.helm.release")}
            equal(mine, rendered - hooks, "objects after install")
            made = ("s-streaming-s3", "s-streaming-tls", "s-streaming-auth")
            keys = {name: objects["Secret", name]["data"] for name in made}
            release.upgrade("--reuse-values", "--set", "node.replicas=5")
            equal(objects["Deployment", "s-streaming-node"]["spec"]["replicas"], 5)
            release.upgrade("--reset-then-reuse-values", "--set", "image.tag=2.0.0")
            image = objects["StatefulSet", "s-streaming-logstore"]["spec"]["template"]["spec"]["containers"][0]["image"]
            equal((image, objects["Deployment", "s-streaming-node"]["spec"]["replicas"]), ("streaming:2.0.0", 5))
            equal({name: objects["Secret", name]["data"] for name in made}, keys, "what Helm made itself, after upgrades")
            release.must("rollback", "s", "1")
            equal(objects["Deployment", "s-streaming-node"]["spec"]["replicas"], 2)
            equal({name: objects["Secret", name]["data"] for name in made}, keys, "what Helm made itself, after a roll-back")
            release.must("uninstall", "s")
            equal(objects, {}, "what is left")


@check("R53", "when autoscaling is switched on, and at upgrades later on, there are as many nodes as there were: Helm 3 and 4, on a stand-in API server")
def autoscaled():
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with apiserver.running() as (objects, kubeconfig):
            release, key = Release(helm, kubeconfig), ("Deployment", "s-streaming-node")
            release.must("install", "s", render.CHART, "--disable-openapi-validation", "--set", "node.replicas=5")
            release.upgrade("--reuse-values", "--set", "node.autoscaling.enabled=true")
            # What is not there becomes 1 on a real one.
            equal(objects[key]["spec"].get("replicas"), 5, "when it is switched on")
            objects[key]["spec"]["replicas"] = 7
            release.upgrade("--reuse-values", "--set", "image.tag=2.0.0")
            equal(objects[key]["spec"].get("replicas"), 7, "what the autoscaler wanted, after an upgrade")


@check("R27", "log stores are not taken away without logstore.allowScaleDown: Helm 3 and 4, on a stand-in API server")
def scale_down():
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with apiserver.running() as (objects, kubeconfig):
            release = Release(helm, kubeconfig)
            four = render.merged(render.QUORUM, {"logstore": {"replicas": 4}})
            release.must("install", "s", render.CHART, "--disable-openapi-validation", values=four)

            def refused(values, message):
                done = release.run("upgrade", "s", render.CHART, values=values)  # noqa: B023
                assert done.returncode != 0 and f"logstore.replicas: {message}" in done.stderr, f"{values}: {done.stderr[-500:]}"
                equal(objects["StatefulSet", "s-streaming-logstore"]["spec"]["replicas"], 4)  # noqa: B023

            refused(render.QUORUM, "from 4 to 3")
            release.upgrade(values={"storage": {"also": ["quorum"]}, "logstore": {"enabled": True, "replicas": 4}})
            refused({"logstore": {"enabled": False}}, "from 4 to 0")
            done = release.run("upgrade", "s", render.CHART, "--set", "etcd.bundled.replicas=3")
            assert done.returncode != 0 and "etcd.bundled.replicas: from 1 to 3" in done.stderr, done.stderr[-500:]
            release.upgrade(values=render.merged(render.QUORUM, {"storage": {"also": ["object"]}, "logstore": {"replicas": 5}}))
            release.upgrade(values=render.merged(render.QUORUM, {"logstore": {"allowScaleDown": True}}))
            equal(objects["StatefulSet", "s-streaming-logstore"]["spec"]["replicas"], 3)


@check("R49", "the type of storage changes only with the one until then in storage.also, which every role is told: Helm 3 and 4, on a stand-in API server")
def moved():
    for helm in render.helms(tools.OLDEST_AND_NEWEST):
        with apiserver.running() as (objects, kubeconfig):
            release = Release(helm, kubeconfig)

            def refused(values, before):
                done = release.run("upgrade", "s", render.CHART, values=values)  # noqa: B023
                assert done.returncode != 0 and f"storage.also: must have {before}" in done.stderr, f"{values}: {done.stderr[-500:]}"

            release.must("install", "s", render.CHART, "--disable-openapi-validation")
            refused(render.QUORUM, "object")
            quorum = render.merged(render.QUORUM, {"storage": {"also": ["object"]}})
            release.upgrade(values=quorum)
            for role in ("coord", "node", "logstore"):
                file = yaml.safe_load(objects["ConfigMap", f"s-streaming-{role}"]["data"]["streaming.yaml"])
                equal((file["woodpecker"]["storage"]["type"], file["woodpecker"]["storage"]["also"]), ("quorum", ["object"]), role)
            release.upgrade(values=render.QUORUM)
            refused({"logstore": {"enabled": True}}, "quorum")
            release.upgrade(values={"storage": {"also": ["quorum"]}, "logstore": {"enabled": True}})
