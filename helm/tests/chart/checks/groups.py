"""Nodes in resource groups."""

import subprocess

import yaml

from chart import render
from chart.checks.process import free_ports, run_test_pod, scratch_cluster, until, until_ready
from chart.registry import check, equal

GROUPS = render.CHART / "ci/groups-values.yaml"
LABEL = "milvus.io/resource-group"


@check("R28", "resource groups: a Deployment, budget and autoscaler each, with Milvus' label and variable; selectors are disjoint; the first has the channels")
def resource_groups():
    objects = render.template(files=[GROUPS])
    deployments = {item["metadata"]["name"].removeprefix("s-streaming-"): item["spec"] for item in render.of_kind(objects, "Deployment")}
    equal(sorted(deployments), ["coord", "node-blue", "node-green"])
    for group in ("blue", "green"):
        spec = deployments[f"node-{group}"]
        pod, selector = spec["template"], spec["selector"]["matchLabels"]
        equal((selector[LABEL], pod["metadata"]["labels"][LABEL]), (group, group))
        variables = render.environment(pod["spec"]["containers"][0])
        equal(variables["MILVUS_SERVER_LABEL_RESOURCE_GROUP"]["value"], group)
        for other in {"blue", "green"} - {group}:
            labels = deployments[f"node-{other}"]["template"]["metadata"]["labels"]
            assert not selector.items() <= labels.items(), f"{group} selects pods of {other}"
        budget = render.named(objects, "PodDisruptionBudget", f"s-streaming-node-{group}")["spec"]
        equal(budget["selector"]["matchLabels"], selector)
        for constraint in pod["spec"]["topologySpreadConstraints"]:
            equal(constraint["labelSelector"]["matchLabels"], selector, group)
    blue, green = (deployments[f"node-{group}"] for group in ("blue", "green"))
    equal((blue["replicas"], "replicas" in green), (3, False))
    scaler, = render.of_kind(objects, "HorizontalPodAutoscaler")
    equal((scaler["spec"]["scaleTargetRef"]["name"], scaler["spec"]["maxReplicas"]), ("s-streaming-node-green", 4))
    equal(blue["template"]["spec"]["containers"][0]["resources"]["requests"], {"cpu": "2", "memory": "1Gi"}, "what a group does not set stays")
    equal((green["template"]["spec"]["nodeSelector"], blue["template"]["metadata"]["labels"]["pool"]), ({"disk": "ssd"}, "blue"))
    service = render.named(objects, "Service", "s-streaming-node")["spec"]["selector"]
    assert all(service.items() <= spec["template"]["metadata"]["labels"].items() for spec in (blue, green)), "one Service for all"
    equal(render.configuration(objects, "coord")["streaming"]["primaryResourceGroup"], "blue")
    chosen = render.template({"config": {"streaming": {"primaryResourceGroup": "green"}}}, files=[GROUPS])
    equal(render.configuration(chosen, "coord")["streaming"]["primaryResourceGroup"], "green")


@check("P28", "the channels are on the primary group's nodes, and move to another group's when the configuration says so, without a restart")
def primary_group():
    more = {"config": {"common": {"reloadInterval": "1s"}}, "node": {"resourceGroups": [{"name": "blue"}, {"name": "green"}]}}
    with scratch_cluster(more) as (cluster, ports, objects):
        cluster.etcd(*ports[:2])
        cluster.s3(ports[2], ports[9:])
        running = {"coord": cluster.role(objects, "coord")}
        at = {}
        for group in ("green", "blue"):
            grpc, admin = free_ports(2)
            own = [f"streamingNode.port={grpc}", f"streamingNode.advertise=127.0.0.1:{grpc}", f"admin.port={admin}"]
            process, _ = cluster.role(objects, "node", group, [word for setting in own for word in ("--set", setting)], group)
            at[group] = (process, grpc)
        until_ready(cluster, objects, running)
        container = render.named(objects, "Pod", "s-streaming-test")["spec"]["containers"][0]
        command, environment = cluster.container(container)

        def owners():
            said = subprocess.run([command[0], "channels"], env=environment, capture_output=True, text=True).stdout
            return {group: said.count(f":{grpc}") for group, (_, grpc) in at.items()}

        until(lambda: owners() == {"blue": 2, "green": 0}, 30, f"both channels on blue: {owners()}{cluster.log('coord')}")
        run_test_pod(cluster, objects)
        file = cluster.scratch / "coord.yaml"
        settings = yaml.safe_load(file.read_text())
        settings["streaming"]["primaryResourceGroup"] = "green"
        file.write_text(yaml.safe_dump(settings))
        until(lambda: owners() == {"blue": 0, "green": 2}, 30, f"both channels on green: {owners()}{cluster.log('coord')}")
        run_test_pod(cluster, objects)
        assert all(process.poll() is None for process, _ in [*running.values(), *at.values()]), "a process ended"
