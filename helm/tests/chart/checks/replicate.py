"""The rendered role `replicate`, run as a process beside its cluster, and another cluster that follows."""

import json
import re
import signal
import subprocess
import urllib.request

from chart import render, tools
from chart.checks.process import free_ports, run_test_pod, scratch_cluster, until, until_ready
from chart.registry import check, equal

SHIPPING = {"milvus_cdc_in_flight_messages", "milvus_cdc_replicate_lag", "milvus_cdc_replicated_bytes_total", "milvus_cdc_stream_rpc_reconnect_times"}


def topology(clusters):
    """The first cluster is the source of the others; (name, port of the coordinator) each."""
    return json.dumps({
        "clusters": [
            {"id": name, "uri": f"http://127.0.0.1:{port}", "channels": [f"{name}-rootcoord-dml_{number}" for number in range(2)]}
            for name, port in clusters
        ],
        "edges": [{"from": clusters[0][0], "to": name} for name, _ in clusters[1:]],
    })  # fmt: skip


@check("R44", "what ships has no keys to object storage, no port but the admin port, and no address that others dial")
def least():
    objects = render.template({"replicate": {"enabled": True}})
    container = render.main_container(objects, "Deployment", "s-streaming-replicate")
    equal([port["name"] for port in container["ports"]], ["admin"])
    names = set(render.environment(container))
    # Where the cluster is, for the verbs; nothing of object storage.
    equal(names, {"STREAMING_CONFIG", "STREAMING_ETCD", "STREAMING_META_ROOT", "STREAMING_CLUSTER", "STREAMING_ADMIN", "POD_NAME", "POD_IP"})
    assert "minio" not in render.configuration(objects, "replicate")
    service = render.named(objects, "Service", "s-streaming-replicate")["spec"]
    equal([port["name"] for port in service["ports"]], ["admin"])
    assert "targets" not in [volume["name"] for volume in render.named(objects, "Deployment", "s-streaming-replicate")["spec"]["template"]["spec"]["volumes"]]
    named = render.template(files=[render.CHART / "ci/replicate-values.yaml"])
    targets, place = render.configuration(named, "replicate")["replicate"]["targets"], "/etc/streaming/targets"
    equal(targets, {"east": {"ca": f"{place}/east/ca.crt", "serverName": "streaming.wal.svc", "tokenFile": f"{place}/east/token"}, "north": {"serverName": "", "tokenFile": f"{place}/north/token"}})
    spec = render.named(named, "Deployment", "s-streaming-replicate")["spec"]["template"]["spec"]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "targets")
    mounted = {item["path"]: (source["secret"]["name"], item["key"]) for source in volume["projected"]["sources"] for item in source["secret"]["items"]}
    equal(mounted, {"east/ca.crt": ("east", "ca.crt"), "east/token": ("east", "token"), "north/token": ("north", "write")})
    assert {"name": "targets", "mountPath": place, "readOnly": True} in spec["containers"][0]["volumeMounts"]
    equal([item for item in render.template() if item["metadata"]["name"].endswith("replicate")], [], "off by default")


@check("P44", "the rendered replicator ships what the test pod appends to a cluster that follows; metrics, probes, SIGTERM ends with 0 in time")
def ships():
    admin, east, east_admin = free_ports(3)
    with scratch_cluster({"replicate": {"enabled": True, "ports": {"admin": admin}}}) as (cluster, ports, objects):
        cluster.etcd(*ports[:2])
        cluster.s3(ports[2], ports[9:])
        running = {role: cluster.role(objects, role) for role in ("coord", "node", "replicate")}
        settings = ["msgChannel.chanNamePrefix.cluster=east", "rootCoord.dmlChannelNum=2", f"rootCoord.port={east}", "streamingNode.port=0", f"admin.port={east_admin}"]
        follower = [tools.streaming(), "standalone", "--data", cluster.scratch / "east"]
        cluster.start("east", [*follower, *(word for setting in settings for word in ("--set", setting))], {})
        until_ready(cluster, objects, running)
        file = cluster.scratch / "topology.yaml"
        file.write_text(topology([("by-dev", ports[3]), ("east", east)]))
        # In a pod there is no file: what is typed into it is.
        applied = [
            subprocess.Popen([tools.streaming(), "topology", "apply", "/dev/stdin", "--cluster", name, "--coordinator", f"127.0.0.1:{port}"], stdin=file.open(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for name, port in (("east", east), ("by-dev", ports[3]))
        ]  # fmt: skip
        for each in applied:
            said, _ = each.communicate(timeout=90)
            equal(each.returncode, 0, f"topology apply: {said}{cluster.log('east')}")
        run_test_pod(cluster, objects)
        read = [tools.streaming(), "consume", "east-rootcoord-dml_0", "--cluster", "east", "--coordinator", f"127.0.0.1:{east}", "--from", "earliest", "--count", "3", "--until-idle", "60s"]
        done = subprocess.run(read, capture_output=True, text=True, timeout=120)
        equal(done.stdout, "one\ntwo\nthree\n", f"what follows: {done.stderr}{cluster.log('replicate')}")

        def missing():
            with urllib.request.urlopen(running["replicate"][1] + "/metrics", timeout=5) as answer:
                return SHIPPING - set(re.findall(r"^([a-z_]+)[{ ]", answer.read().decode(), re.M))

        until(lambda: not missing(), 30, f"metrics {missing()}")
        process = running["replicate"][0]
        grace = render.named(objects, "Deployment", "s-streaming-replicate")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=grace), 0, cluster.log("replicate"))
