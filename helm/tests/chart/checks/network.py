"""Services, network policy, disruption and spreading."""

import yaml

from chart import render
from chart.registry import check, equal


@check("R21", "log stores start side by side, keep their claims, and are found before they are ready")
def stateful():
    objects = render.template(render.QUORUM)
    store = render.named(objects, "StatefulSet", "s-streaming-logstore")["spec"]
    equal(store["podManagementPolicy"], "Parallel")
    equal(store["persistentVolumeClaimRetentionPolicy"], {"whenDeleted": "Retain", "whenScaled": "Retain"})
    service = render.named(objects, "Service", store["serviceName"])["spec"]
    equal((service["clusterIP"], service["publishNotReadyAddresses"]), ("None", True))
    container = store["template"]["spec"]["containers"][0]
    advertised = render.environment(container)["STREAMING_CONF_WOODPECKER_LOGSTORE_ADVERTISE"]["value"]
    equal(advertised, "$(POD_NAME).s-streaming-logstore.wal.svc.cluster.local:18080")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    equal(mounts["data"], render.configuration(objects, "logstore")["woodpecker"]["storage"]["rootPath"])


@check("R18", "a coordinator or node is replaced before its predecessor goes")
def rolling():
    objects = render.template({"replicate": {"enabled": True}})
    for role in ("coord", "node", "replicate"):
        strategy = render.named(objects, "Deployment", f"s-streaming-{role}")["spec"]["strategy"]
        equal(strategy, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}, role)


@check("R24", "budgets let one pod go at a time and never block a single one")
def budgets():
    for name, objects in render.every_render():
        workloads = {item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"] for item in render.of_kind(objects, "Deployment", "StatefulSet")}
        for budget in render.of_kind(objects, "PodDisruptionBudget"):
            equal(budget["spec"]["maxUnavailable"], 1, f"{name} {budget['metadata']['name']}")
            labels = workloads[budget["metadata"]["name"]]
            assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
    equal(render.of_kind(render.template({"coord": {"pdb": {"enabled": False}}, "node": {"pdb": {"enabled": False}}, "etcd": {"endpoints": ["e:1"], "bundled": {"enabled": False}}}), "PodDisruptionBudget"), [])


@check("R25", "pods spread over zones and hosts; production insists on zones")
def spread():
    def constraints(objects, kind, role):
        found = render.named(objects, kind, f"s-streaming-{role}")["spec"]["template"]["spec"]["topologySpreadConstraints"]
        return {item["topologyKey"]: item["whenUnsatisfiable"] for item in found}

    zone, host = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
    for role in ("coord", "node"):
        equal(constraints(render.template(), "Deployment", role), {zone: "ScheduleAnyway", host: "ScheduleAnyway"}, role)
    prod = render.template(render.merged(render.PROD, render.QUORUM), files=[render.CHART / "values-prod.yaml"])
    equal(constraints(prod, "StatefulSet", "logstore"), {zone: "DoNotSchedule", host: "DoNotSchedule"})
    equal(constraints(prod, "Deployment", "node")[zone], "DoNotSchedule")
    off = render.template({"node": {"topologySpread": {"zone": "off", "host": "off"}}})
    assert "topologySpreadConstraints" not in render.named(off, "Deployment", "s-streaming-node")["spec"]["template"]["spec"]


@check("R29", "with autoscaling no replicas are set, and the autoscaler points at the Deployment")
def autoscaling():
    for kubernetes, version in (("1.22", "autoscaling/v2beta2"), ("1.33", "autoscaling/v2")):
        objects = render.template({"node": {"autoscaling": {"enabled": True}}}, kubernetes=kubernetes)
        scaler = render.of_kind(objects, "HorizontalPodAutoscaler")[0]
        equal(scaler["apiVersion"], version)
        target = render.named(objects, scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"]
        equal(scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 600)
    assert "replicas" in render.named(render.template(), "Deployment", "s-streaming-node")["spec"]


def allowed(rules, direction):
    """{peers as text: ports} of a policy."""
    return {
        yaml.safe_dump(rule.get(direction, "anyone")): sorted((port["port"], port["protocol"]) for port in rule.get("ports", []))
        for rule in rules
    }


def at(cidr, port):
    """The rule for one address."""
    return {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"port": port, "protocol": "TCP"}]}


@check("R33", "the network policy allows exactly: the release, clients, monitoring, DNS, etcd, object storage, what exchanges an identity, and collectors of traces")
def policy():
    objects = render.template(files=[render.CHART / "ci/prod-aws-values.yaml"])
    found = render.of_kind(objects, "NetworkPolicy")
    equal(len(found), 1)
    spec = found[0]["spec"]
    release = {"app.kubernetes.io/name": "streaming", "app.kubernetes.io/instance": "s"}
    equal(spec["podSelector"]["matchLabels"], release)
    equal(sorted(spec["policyTypes"]), ["Egress", "Ingress"])
    own = yaml.safe_dump([{"podSelector": {"matchLabels": release}}])
    clients = yaml.safe_dump([{"namespaceSelector": {"matchLabels": {"team": "search"}}, "podSelector": {"matchLabels": {"app": "milvus"}}}])
    monitoring = yaml.safe_dump([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}])
    equal(allowed(spec["ingress"], "from"), {own: [], clients: [(22222, "TCP"), (53100, "TCP")], monitoring: [(9091, "TCP")]})
    peers = yaml.safe_dump([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "db"}}}])
    egress = spec["egress"]
    equal(len(egress), 7)
    equal(egress[0], {"to": [{"podSelector": {"matchLabels": release}}]})
    equal(egress[1], {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]})
    equal(allowed(egress[2:3], "to"), {peers: [(2379, "TCP")]})
    https = {"ports": [{"port": 443, "protocol": "TCP"}]}
    equal(egress[3:], [https, at("169.254.170.23/32", 80), at("fd00:ec2::23/128", 80), https], "S3; EKS Pod Identity; STS")
    for scenario, wanted in [
        ("gcp", [https, at("169.254.169.252/32", 988), at("169.254.169.254/32", 80)]),
        ("azure", [at("10.9.0.0/24", 443), at("10.9.1.0/24", 443)]),
    ]:
        spec = render.of_kind(render.template(files=[render.CHART / f"ci/{scenario}-values.yaml"]), "NetworkPolicy")[0]["spec"]
        equal(spec["egress"][3:], wanted, scenario)
    keys = render.merged({"networkPolicy": {"enabled": True}}, yaml.safe_load((render.CHART / "ci/external-static-values.yaml").read_text()))
    equal(render.of_kind(render.template(keys), "NetworkPolicy")[0]["spec"]["egress"][3:], [https], "keys need no exchange")
    traced = render.merged(keys, {"config": {"trace": {"exporter": "otlp", "otlp": {"endpoint": "https://otel.example.com"}}}, "node": {"config": {"trace": {"otlp": {"endpoint": "http://otel.obs:4317"}}}}})
    collectors = {"ports": [{"port": 443, "protocol": "TCP"}, {"port": 4317, "protocol": "TCP"}]}
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "obs"}}}]
    for values, wanted in [({}, collectors), ({"networkPolicy": {"collectorPeers": peers}}, collectors | {"to": peers})]:
        equal(render.of_kind(render.template(render.merged(traced, values)), "NetworkPolicy")[0]["spec"]["egress"][4:], [wanted], "collectors of traces")
    silent = render.merged(keys, {"config": {"trace": {"otlp": {"endpoint": "http://otel.obs:4317"}}}})
    equal(render.of_kind(render.template(silent), "NetworkPolicy")[0]["spec"]["egress"][4:], [], "traces that nobody exports")
    bundled = render.of_kind(render.template({"networkPolicy": {"enabled": True}}), "NetworkPolicy")[0]["spec"]
    equal(len(bundled["egress"]), 2, "bundled stores are pods of the release")
    ships = render.template(files=[render.CHART / "ci/replicate-values.yaml"])
    common = render.named(ships, "NetworkPolicy", "s-streaming")["spec"]
    own = render.named(ships, "NetworkPolicy", "s-streaming-replicate")["spec"]
    equal((own["podSelector"]["matchLabels"], own["policyTypes"]), (release | {"app.kubernetes.io/component": "replicate"}, ["Egress"]))
    east = yaml.safe_dump([{"ipBlock": {"cidr": "10.8.0.0/16"}}])
    equal(allowed(own["egress"], "to"), {east: [(22222, "TCP"), (53100, "TCP")]})
    assert east not in yaml.safe_dump(common), "only what ships goes to other clusters"
    equal(render.of_kind(render.template({"replicate": {"enabled": True}}), "NetworkPolicy"), [])
    pods = [metadata["labels"] for _, metadata, _ in render.pods(render.template(render.QUORUM))]
    assert pods and all(release.items() <= labels.items() for labels in pods), "a pod outside the policy"


@check("R15", "liveness asks for the process only, readiness for what it depends on")
def probes():
    for name, objects in render.every_render():
        for item in render.of_kind(objects, "Deployment", "StatefulSet"):
            container = item["spec"]["template"]["spec"]["containers"][0]
            if container["name"] in ("coord", "node", "logstore", "replicate"):
                paths = {key: container[key]["httpGet"]["path"] for key in ("startupProbe", "livenessProbe", "readinessProbe")}
                equal(paths, {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}, name)
                equal({container[key]["httpGet"]["scheme"] for key in paths}, {"HTTPS" if render.configuration_of(objects, container["name"], item["metadata"]["name"])["tls"]["enabled"] else "HTTP"}, name)
                names = {port["name"] for port in container["ports"]}
                assert all(container[key]["httpGet"]["port"] in names for key in paths), name


@check("R20", "a stop: SIGTERM alone drains, unless a pause before it is asked for; the kubelet leaves more time than it may take")
def stop():
    for name, objects in render.every_render():
        for where, _, spec in render.pods(objects):
            role = spec["containers"][0]["name"]
            if role in ("coord", "node", "logstore", "replicate"):
                assert "lifecycle" not in spec["containers"][0], f"{name} {where}"
                drain = int(render.configuration_of(objects, role, where.split("/")[1])["common"]["gracefulStopTimeout"].removesuffix("s"))
                assert 2 * drain < spec["terminationGracePeriodSeconds"], f"{name} {where}: {drain}"
    paused = render.template({"node": {"drain": {"preStopSeconds": 5}}})
    equal(render.main_container(paused, "Deployment", "s-streaming-node")["lifecycle"], {"preStop": {"sleep": {"seconds": 5}}})
