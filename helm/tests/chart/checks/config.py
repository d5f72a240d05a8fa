"""The binary's configuration file, as the chart writes it."""

import concurrent.futures
import functools
import json
import pathlib
import re
import subprocess
import tempfile

import yaml

from chart import render, tools
from chart.registry import check, equal

ROLES = (("coord", "Deployment"), ("node", "Deployment"), ("logstore", "StatefulSet"), ("replicate", "Deployment"))


def checksums(values):
    objects = render.template(render.merged(render.QUORUM, {"replicate": {"enabled": True}}, values))
    return {
        role: render.named(objects, kind, f"s-streaming-{role}")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for role, kind in ROLES
    }


@check("R12", "a change restarts exactly the roles it concerns; scaling restarts none")
def checksum():
    before = checksums({})

    def changed(values):
        after = checksums(values)
        return {role for role in before if before[role] != after[role]}

    equal(changed({"logstore": {"replicas": 5}, "node": {"replicas": 7}}), set(), "scaling")
    equal(changed({"node": {"config": {"streaming": {"maxMessageSize": "8MiB"}}}}), {"node"}, "node.config")
    equal(changed({"config": {"common": {"session": {"ttl": "20s"}}}}), {"coord", "node", "logstore", "replicate"}, "config")
    equal(changed({"coord": {"ports": {"grpc": 53101}}}), {"coord"}, "coord.ports")
    equal(changed({"etcd": {"rootPath": "other"}}), {"coord", "node", "logstore", "replicate"}, "etcd.rootPath")
    equal(changed({"objectStorage": {"bucket": "other"}}), {"coord", "node"}, "objectStorage.bucket")
    equal(changed({"replicate": {"config": {"replicate": {"inFlightMessages": 64}}, "replicas": 2}}), {"replicate"}, "replicate.config")


@check("R13", "values reach the file under the binary's key names; a role's own `config` wins over the common one")
def keys():
    values = {
        "config": {"streaming": {"maxMessageSize": "8MiB", "timeTickInterval": "100ms"}},
        "node": {"config": {"streaming": {"maxMessageSize": "4MiB"}}},
        "objectStorage": {"caSecret": "trusted", "caKey": "all.pem"},
    }
    objects = render.template(render.merged(render.PROD, values))
    node, coord = (render.configuration(objects, role) for role in ("node", "coord"))
    equal(node["streaming"], {"maxMessageSize": "4MiB", "timeTickInterval": "100ms", "nodeMaxHeld": "256MiB", "walWriteAheadBuffer": {"nodeCapacity": "384MiB"}})
    equal(coord["streaming"]["maxMessageSize"], "8MiB")
    equal(node["etcd"]["endpoints"], ["etcd:2379"])
    equal((node["minio"]["address"], node["minio"]["ssl"]), ("s3.us-east-1.amazonaws.com", {"tlsCACert": "/etc/streaming/s3-ca/ca.crt"}))
    spec = render.named(objects, "Deployment", "s-streaming-node")["spec"]["template"]["spec"]
    equal(next(volume["secret"]["items"] for volume in spec["volumes"] if volume["name"] == "s3-ca"), [{"key": "all.pem", "path": "ca.crt"}])
    assert {"name": "s3-ca", "mountPath": "/etc/streaming/s3-ca", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    equal((node["streamingNode"], node["admin"]), ({"ip": "0.0.0.0", "port": 22222}, {"ip": "0.0.0.0", "port": 9091}))
    equal(node["common"]["gracefulStopTimeout"], "50s")
    azure = render.configuration(render.template(files=[render.CHART / "ci/azure-values.yaml"]), "node")
    equal([azure["minio"][key] for key in ("cloudProvider", "accessKeyID", "address")], ["azure", "mystorage", "core.chinacloudapi.cn"])
    gcp = render.configuration(render.template(files=[render.CHART / "ci/gcp-values.yaml"]), "node")
    assert "address" not in gcp["minio"] and gcp["minio"]["cloudProvider"] == "gcp", "the cloud's own"
    local = render.configuration(render.template(files=[render.CHART / "ci/filesystem-values.yaml"]), "node")
    equal((local["minio"]["cloudProvider"], local["minio"]["rootPath"]), ("local", "/objects"))


def dump(role, text, variables):
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch, "streaming.yaml")
        file.write_text(text)
        command = [tools.streaming(), role, "--dump-config"]
        return subprocess.run(command, env={"STREAMING_CONFIG": str(file), **variables}, capture_output=True, text=True)


@check("P13", "the binary takes every rendered file together with the rendered variables")
def binary_takes_it():
    for name, objects in render.every_render(kubernetes="1.35"):
        for role, kind in ROLES:
            found = [item for item in render.of_kind(objects, kind) if item["metadata"]["name"].endswith(f"-{role}")]
            if not found:
                continue
            text = render.named(objects, "ConfigMap", found[0]["metadata"]["name"])["data"]["streaming.yaml"]
            entries = render.environment(found[0]["spec"]["template"]["spec"]["containers"][0])
            variables = {key: entry.get("value", "text") for key, entry in entries.items() if key.startswith("STREAMING_CONF_")}
            done = dump(role, text, variables)
            assert done.returncode == 0, f"{name} {role}: {done.stderr}"


@check("P56", "a configuration file of one's own, in a ConfigMap that is named, is read by every role after the chart's, and wins")
def own_file():
    values = {"existingConfigMap": "mine", "existingConfigMapKey": "all.yaml", "config": {"streaming": {"maxMessageSize": "8MiB", "timeTickInterval": "100ms"}}}
    objects = render.template(render.merged(render.QUORUM, {"replicate": {"enabled": True}}, values))
    own = {"mine": {"all.yaml": "streaming: {maxMessageSize: 4MiB}\n"}}
    files = own | {item["metadata"]["name"]: item["data"] for item in render.of_kind(objects, "ConfigMap")}
    for role, kind in ROLES:
        spec = render.named(objects, kind, f"s-streaming-{role}")["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
        container = spec["containers"][0]
        with tempfile.TemporaryDirectory() as scratch:
            for mount in container["volumeMounts"]:
                place = pathlib.Path(scratch + mount["mountPath"])
                place.mkdir(parents=True)
                for name, text in files.get(volumes.get(mount["name"]), {}).items():
                    (place / name).write_text(text)
            entries = {name: entry.get("value", "text") for name, entry in render.environment(container).items() if name.startswith("STREAMING_CONF")}
            entries["STREAMING_CONFIG"] = ",".join(scratch + file for file in entries["STREAMING_CONFIG"].split(","))
            done = subprocess.run([tools.streaming(), role, "--dump-config"], env=entries, capture_output=True, text=True)
        assert done.returncode == 0, f"{role}: {done.stderr}"
        told = yaml.safe_load(done.stdout)
        equal((told["streaming"]["maxMessageSize"], told["streaming"]["timeTickInterval"], told["admin"]["ip"]), ("4.0 MiB", "100ms", "0.0.0.0"), role)


UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
# What a role may keep in memory at most.
HELD = {
    "coord": ["woodpecker.maintenance.memory", "woodpecker.client.objectStorage.cacheSize", "woodpecker.client.sealed.cacheSize"],
    "node": ["streaming.walWriteAheadBuffer.nodeCapacity", "streaming.nodeMaxHeld", "streaming.walReadAheadBuffer.capacity", "woodpecker.client.objectStorage.maxQueued", "woodpecker.client.objectStorage.cacheSize", "woodpecker.client.sealed.cacheSize"],
    "logstore": ["woodpecker.logstore.inFlight.total"],
}


def in_bytes(size):
    number, unit = re.fullmatch(r"([0-9.]+) ?([A-Za-z]+)", size).groups()
    return float(number) * UNITS[unit]


@check("P51", "what a role may keep in memory leaves two fifths of its container's limit free, in every preset")
def memory():
    for name, objects in render.every_render(kubernetes="1.33"):
        for role, kind in ROLES[:3]:
            for workload in [item for item in render.of_kind(objects, kind) if item["spec"]["template"]["spec"]["containers"][0]["name"] == role]:
                container = workload["spec"]["template"]["spec"]["containers"][0]
                text = yaml.safe_dump(render.configuration_of(objects, role, workload["metadata"]["name"]))
                variables = {key: entry.get("value", "text") for key, entry in render.environment(container).items() if key.startswith("STREAMING_CONF_")}
                done = dump(role, text, variables)
                assert done.returncode == 0, f"{name} {role}: {done.stderr}"
                told = yaml.safe_load(done.stdout)
                held = sum(in_bytes(functools.reduce(dict.get, key.split("."), told)) for key in HELD[role])
                limit = in_bytes(container["resources"]["limits"]["memory"])
                assert held <= 0.6 * limit, f"{name} {role}: {held / 2**20:.0f} MiB of {limit / 2**20:.0f}"


# One value of each kind; as text only such keys take it that take any.
KINDS = {"string": "§ no such thing", "boolean": True, "array": [["§"]], "object": {"§": {"§": 1}}}


def keys(rule, path=()):
    """(path, types) of every key of the configuration."""
    for name, inner in rule["properties"].items():
        if "properties" in inner:
            yield from keys(inner, (*path, name))
        else:
            # Words that are listed have no type.
            types = [] if {"enum", "oneOf"} & inner.keys() else inner.get("type", "string")
            yield (*path, name), {types} if isinstance(types, str) else set(types)


@check("P48", "the binary refuses a configuration in which a key has a value of another kind, and names the key")
def kinds_of_keys():
    schema = json.loads(subprocess.check_output([tools.streaming(), "config", "schema"], text=True))
    wrong = [(path, kind) for path, types in keys(schema) for kind in KINDS if kind not in types]
    assert len(wrong) > 500, f"only {len(wrong)} cases"
    with tempfile.TemporaryDirectory() as scratch:

        def told(case):
            path, kind = case
            content = functools.reduce(lambda inner, name: {name: inner}, reversed(path), KINDS[kind])
            file = pathlib.Path(scratch, f"{'.'.join(path)}-{kind}.yaml")
            file.write_text(json.dumps(content))
            done = subprocess.run([tools.streaming(), "standalone", "--config", file, "--dump-config"], capture_output=True, text=True)
            return done.returncode, done.stderr

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for (path, kind), (code, said) in zip(wrong, pool.map(told, wrong)):
                name = ".".join(path)
                assert code == 1 and name.lower() in said.lower(), f"{name} as {kind}: exit {code}: {said}"
