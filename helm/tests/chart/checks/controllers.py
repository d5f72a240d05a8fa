"""What the controllers and the scheduler of a real Kubernetes make of the chart: rollouts, claims, evictions, placement. Machines
and containers are only said to be there, so there may be many; K38 has real ones."""

import collections

from chart import cluster, render, tools
from chart.checks.process import until
from chart.checks.upgrade import Release
from chart.cluster import is_ready
from chart.registry import check, equal

# The stores are elsewhere.
ELSEWHERE = render.merged(render.PROD, {"preset": "dev"})
STORES = render.merged(ELSEWHERE, render.QUORUM, {"logstore": {"minReadySeconds": 1}})
ROLES = {"coord": 2, "node": 2}
CLAIMS = f"/api/v1/namespaces/{cluster.NAMESPACE}/persistentvolumeclaims"


def machines(running, zones=("z1", "z2", "z3"), each=2):
    for zone in zones:
        for number in range(each):
            running.node(f"{zone}-{number}", zone)


def newest(running):
    return Release(tools.OLDEST_AND_NEWEST[1], running.kubeconfig)


def installed(running, containers, volumes):
    """A release with log stores, all of it ready, where there are so many volumes."""
    machines(running)
    for number in range(volumes):
        running.volume(f"v{number}")
    release = newest(running)
    release.must("install", "s", render.CHART, values=STORES)
    containers.all_ready(coord=2, node=2, logstore=3)
    return release


def claims(running):
    """{claim: volume}"""
    return {item["metadata"]["name"]: item["spec"]["volumeName"] for item in running.must("GET", CLAIMS)["items"]}


def living(pods, role):
    return [pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == role and not pod["metadata"].get("deletionTimestamp")]


@check("K18", "rolling updates by real controllers: of coordinators and nodes no less than asked for is ever ready, and one more at most is there; log stores go one at a time, the last one first, and keep their claims")
def rolling():
    with cluster.running(controllers=True) as (running, containers):
        release = installed(running, containers, volumes=3)
        before, first = claims(running), len(containers.seen)
        equal(len(before), 3, "claims")
        release.must("upgrade", "s", render.CHART, "--reuse-values", "--set", "image.tag=2.0.0")
        until(lambda: {pod["spec"]["containers"][0]["image"] for pod in running.pods()} == {"streaming:2.0.0"}, 90, "all pods of the new image")
        containers.all_ready(coord=2, node=2, logstore=3)
        equal(claims(running), before, "claims after the update")
        seen = containers.seen[first:]
        order = []
        for pods in seen:
            for role, wanted in ROLES.items():
                there = living(pods, role)
                assert sum(map(is_ready, there)) >= wanted, f"{role}: {sum(map(is_ready, there))} of {wanted} ready"
                assert len(there) <= wanted + 1, f"{role}: {len(there)} at once"
            stores = living(pods, "logstore")
            assert sum(map(is_ready, stores)) >= 2, f"{len(stores)} log stores"
            order += [pod["metadata"]["name"] for pod in stores if pod["spec"]["containers"][0]["image"] == "streaming:2.0.0" and pod["metadata"]["name"] not in order]
        equal(order, [f"s-streaming-logstore-{number}" for number in (2, 1, 0)], "order in which log stores were replaced")


@check("K22", "a log store's pod that is deleted comes back with its name and its claim; after removal the claims are all that is left, and a new installation takes them up")
def claimed():
    with cluster.running(controllers=True) as (running, containers):
        release = installed(running, containers, volumes=5)
        before = claims(running)
        name = "s-streaming-logstore-1"
        path = f"/api/v1/namespaces/{cluster.NAMESPACE}/pods/{name}"
        old = running.must("GET", path)
        running.must("DELETE", path)

        def back():
            status, pod = running.call("GET", path)
            return status == 200 and pod["metadata"]["uid"] != old["metadata"]["uid"] and is_ready(pod)

        until(back, 60, "the deleted pod")
        new = running.must("GET", path)
        mounted = [volume["persistentVolumeClaim"] for pod in (old, new) for volume in pod["spec"]["volumes"] if volume["name"] == "data"]
        equal(mounted, [{"claimName": f"data-{name}"}] * 2)
        equal(claims(running), before, "claims after a pod was deleted")
        release.must("uninstall", "s")
        until(lambda: not running.pods(), 60, "no pods")
        left = running.kubectl("get", "all,cm,secret,pdb,networkpolicy,sa,pvc", "-n", cluster.NAMESPACE, "-l", "app.kubernetes.io/instance=s", "-o", "name")
        equal(sorted(left.stdout.split()), sorted(f"persistentvolumeclaim/{claim}" for claim in before), "what is left")
        release.must("install", "s", render.CHART, values=STORES)
        containers.all_ready(coord=2, node=2, logstore=3)
        equal(claims(running), before, "claims of a new installation")


@check("K54", "log stores get larger claims as the guide says: the StatefulSet is made anew under its pods, which stay the same")
def grown():
    def pods():
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in running.pods("logstore")}

    def stores():
        return running.must("GET", f"/apis/apps/v1/namespaces/{cluster.NAMESPACE}/statefulsets/s-streaming-logstore")

    with cluster.running(controllers=True) as (running, containers):
        release = installed(running, containers, volumes=3)
        before, larger = pods(), ("--reuse-values", "--set", "logstore.persistence.size=100Gi")
        done = release.run("upgrade", "s", render.CHART, *larger)
        assert done.returncode != 0 and "statefulset" in done.stderr.lower(), f"the size was changed under the StatefulSet: {done.stderr}"
        running.kubectl("delete", "statefulset", "s-streaming-logstore", "-n", cluster.NAMESPACE, "--cascade=orphan")
        release.must("upgrade", "s", render.CHART, *larger)
        containers.all_ready(coord=2, node=2, logstore=3)
        equal(stores()["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"], "100Gi")
        until(lambda: stores()["status"].get("readyReplicas") == 3, 60, "the new StatefulSet has the pods")
        equal(pods(), before, "pods of the log stores")


def evictable(running, pod, expected):
    """Asks until the answer is the expected one: budgets follow pods with a delay."""
    until(lambda: running.evict(pod["metadata"]["name"]) == expected, 30, f"{pod['metadata']['name']}: {expected}")


@check("K24", "evictions: one log store and one coordinator may go, a second one not before the first is back; a single one may always go")
def budgets():
    with cluster.running(controllers=True) as (running, containers):
        release = installed(running, containers, volumes=3)
        for role in ("logstore", "coord", "node"):
            one, other = running.pods(role)[:2]
            known = {pod["metadata"]["uid"] for pod in running.pods()}
            containers.held = lambda pod, known=known: pod["metadata"]["uid"] not in known
            evictable(running, one, 201)
            until(lambda: one["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in running.pods()}, 30, f"{role} is gone")  # noqa: B023
            for _ in range(20):
                equal(running.evict(other["metadata"]["name"]), 429, f"{role}: the second eviction")
            containers.held = lambda pod: False
            containers.all_ready(coord=2, node=2, logstore=3)
            evictable(running, other, 201)
            containers.all_ready(coord=2, node=2, logstore=3)
        release.must("upgrade", "s", render.CHART, "--reuse-values", "--set", "coord.replicas=1,node.replicas=1")
        containers.all_ready(coord=1, node=1, logstore=3)
        for role in ("coord", "node"):
            evictable(running, running.pods(role)[0], 201)
            containers.all_ready(coord=1, node=1, logstore=3)


@check("K25", "the real scheduler: three log stores stand in three zones, six nodes two in each; in production a node waits rather than crowd the other zones; resource groups keep to their machines")
def placed():
    def zones(role, group=None):
        pods = [pod for pod in living(running.pods(), role) if group in (None, pod["metadata"]["labels"].get("milvus.io/resource-group"))]
        return collections.Counter(pod["spec"].get("nodeName", "nowhere-").split("-")[0] for pod in pods)

    with cluster.running(controllers=True) as (running, containers):
        machines(running)
        for number in range(3):
            running.volume(f"v{number}")
        release = newest(running)
        values = ["-f", render.CHART / "values-prod.yaml", "-f", render.CHART / "values-quorum.yaml"]
        release.must("install", "s", render.CHART, *values, values=render.merged(render.PROD, {"node": {"replicas": 6}}))
        containers.all_ready(coord=2, node=6, logstore=3)
        equal(zones("logstore"), {"z1": 1, "z2": 1, "z3": 1}, "log stores")
        equal(zones("node"), {"z1": 2, "z2": 2, "z3": 2}, "nodes")
        equal(max(zones("coord").values()), 1, "coordinators in one zone")
        for number in range(2):
            running.must("PATCH", f"/api/v1/nodes/z3-{number}", {"spec": {"unschedulable": True}}, cluster.MERGE)
        release.must("upgrade", "s", render.CHART, *values, values=render.merged(render.PROD, {"node": {"replicas": 9}}))
        until(lambda: zones("node") == {"z1": 3, "z2": 3, "z3": 2, "nowhere": 1}, 60, f"nodes without the third zone: {zones('node')}")
        waiting = next(pod for pod in running.pods("node") if "nodeName" not in pod["spec"])
        until(lambda: any(each.get("reason") == "Unschedulable" for pod in running.pods("node") if pod["metadata"]["uid"] == waiting["metadata"]["uid"] for each in pod["status"].get("conditions", [])), 30, "the scheduler says so")
        for number in range(2):
            running.must("PATCH", f"/api/v1/nodes/z3-{number}", {"spec": {"unschedulable": False}}, cluster.MERGE)
        until(lambda: zones("node") == {"z1": 3, "z2": 3, "z3": 3}, 90, f"nodes with the third zone again: {zones('node')}")
        running.node("z4-0", "z4", {"pool": "green"})
        groups = [{"name": "blue", "replicas": 3}, {"name": "green", "replicas": 2, "nodeSelector": {"pool": "green"}, "topologySpread": {"zone": "off"}}]
        release.must("install", "other", render.CHART, values=render.merged(ELSEWHERE, {"etcd": {"rootPath": "other"}, "node": {"resourceGroups": groups}}))
        containers.all_ready(coord=4, node=14, logstore=3)
        equal(zones("node", "green"), {"z4": 2}, "the group with a selector")
        equal(sum(zones("node", "blue").values()), 3)
