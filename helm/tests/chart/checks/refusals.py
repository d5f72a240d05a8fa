"""What must not render, and that the message names the key."""

import json

from chart import render, tools
from chart.registry import check, equal

PROD_FILE = [render.CHART / "values-prod.yaml"]

# (values, what the message must contain)
SCHEMA = [
    ({"nodes": {}}, "nodes"),
    ({"node": {"replica": 1}}, "replica"),
    ({"node": {"replicas": 0}}, "replicas"),
    ({"node": {"replicas": "2"}}, "replicas"),
    ({"coord": {"ports": {"grpc": 70000}}}, "grpc"),
    ({"node": {"ports": {"admin": 0}}}, "admin"),
    ({"preset": "production"}, "preset"),
    ({"objectStorage": {"provider": "s3"}}, "provider"),
    ({"objectStorage": {"auth": "iam"}}, "auth"),
    ({"objectStorage": {"bucket": ""}}, "bucket"),
    ({"objectStorage": {"endpoint": "https://s3.example.com"}}, "endpoint"),
    ({"objectStorage": {"rootPath": "/files"}}, "rootPath"),
    ({"storage": {"type": "local"}}, "type"),
    ({"storage": {"also": ["local"]}}, "also"),
    ({"etcd": {"endpoints": ["etcd"]}}, "endpoints"),
    ({"etcd": {"endpoints": "etcd:2379"}}, "endpoints"),
    ({"etcd": {"rootPath": "by-dev/"}}, "rootPath"),
    ({"etcd": {"bundled": {"replicas": 2}}}, "replicas"),
    ({"etcd": {"bundled": {"image": "etcd:latest"}}}, "image"),
    ({"image": {"tag": "latest"}}, "tag"),
    ({"image": {"digest": "0123"}}, "digest"),
    ({"image": {"pullPolicy": "always"}}, "pullPolicy"),
    ({"node": {"image": {"tag": "latest"}}}, "tag"),
    ({"node": {"image": {"pullSecrets": []}}}, "pullSecrets"),
    ({"logstore": {"containerSecurityContext": {"fsGroup": 1}}}, "fsGroup"),
    ({"existingConfigMap": "My_Map"}, "existingConfigMap"),
    ({"log": {"format": "xml"}}, "format"),
    ({"tls": {"clientAuth": "yes"}}, "clientAuth"),
    ({"tls": {"minVersion": "1.3"}}, "minVersion"),
    ({"tls": {"certManager": {"duration": "90d"}}}, "duration"),
    ({"config": {"tls": {"enabled": True}}}, "tls"),
    ({"config": {"trace": {"exporter": "jaeger"}}}, "exporter"),
    ({"config": {"trace": {"sampleFraction": 1.5}}}, "sampleFraction"),
    ({"config": {"limits": {"connections": 0}}}, "connections"),
    ({"config": {"woodpecker": {"client": {"quorum": {"quorumSelectStrategy": {"affinityMode": "x"}}}}}}, "affinityMode"),
    ({"logstore": {"persistence": {"size": "50 GB"}}}, "size"),
    ({"logstore": {"persistence": {"accessModes": ["ReadWriteMany"]}}}, "accessModes"),
    ({"logstore": {"zone": {"source": "magic"}}}, "source"),
    ({"node": {"resources": {"requests": {"cpu": 2}}}}, "cpu"),
    ({"node": {"resources": {"request": {}}}}, "request"),
    ({"node": {"topologySpread": {"zone": "Always"}}}, "zone"),
    ({"node": {"autoscaling": {"targetCPUPercent": 0}}}, "targetCPUPercent"),
    ({"node": {"extraEnv": [{"value": "x"}]}}, "extraEnv"),
    ({"node": {"podLabels": {"a": 1}}}, "podLabels"),
    ({"metrics": {"serviceMonitor": {"interval": "30"}}}, "interval"),
    ({"config": {"streaming": {"maxMesageSize": "8MiB"}}}, "maxMesageSize"),
    ({"config": {"streaming": {"maxMessageSize": "8"}}}, "maxMessageSize"),
    ({"config": {"streaming": {"timeTickInterval": 200}}}, "timeTickInterval"),
    ({"config": {"rootCoord": {"dmlChannelNum": 0}}}, "dmlChannelNum"),
    ({"config": {"etcd": {"endpoints": ["x:1"]}}}, "etcd"),
    ({"node": {"config": {"minio": {"secretAccessKey": "x"}}}}, "minio"),
    ({"fullnameOverride": "Upper"}, "fullnameOverride"),
    ({"podSecurityContext": {"runAsUser": "65532"}}, "runAsUser"),
    ({"podSecurityContext": {"runAsNonroot": True}}, "runAsNonroot"),
    ({"containerSecurityContext": {"capabilities": {"drop": ["all"]}}}, "drop"),
    ({"log": {"level": "verbose"}}, "level"),
    ({"image": {"repository": "Streaming"}}, "repository"),
    ({"tls": {"existingSecret": "My_Secret"}}, "existingSecret"),
    ({"auth": {"tokenKey": "a/b"}}, "tokenKey"),
    ({"node": {"affinity": {"nodeAfinity": {}}}}, "nodeAfinity"),
    ({"serviceAccount": {"annotation": {}}}, "annotation"),
    ({"replicate": {"ports": {"grpc": 1}}}, "grpc"),
    ({"replicate": {"targets": {"east": {"serverName": "x"}}}}, "existingSecret"),
    ({"node": {"resourceGroups": [{"name": "A_b"}]}}, "resourceGroups"),
    ({"node": {"resourceGroups": ["blue"]}}, "resourceGroups"),
    ({"networkPolicy": {"followerPorts": [0]}}, "followerPorts"),
]


@check("R4", f"the schema refuses {len(SCHEMA)} wrong values and names the key")
def schema():
    first, *others = render.helms()
    # Two engines for one schema: the second one, in all but the first, shows that it understands it.
    for helm, wrong in [(first, SCHEMA), *((other, SCHEMA[::5]) for other in others)]:
        for values, key in wrong:
            said = render.refusal(values, helm=helm)
            assert "specifications of the schema" in said and key in said, f"helm {helm}, {values}: {said}"


# One value of each kind; the text is none that any key takes.
KINDS = {"text": "§ no such thing", "number": -7.5, "flag": True, "list": [["§"]], "map": {"§": {"§": 1}}, "null": None}
# Text that is for people; Kubernetes' own maps, where null takes away what is set here.
ANYTHING = {"dashboards.folder": {"text"}}
NULLABLE = ("podSecurityContext.", "containerSecurityContext.")


def leaves(values, path=()):
    for key, value in values.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


@check("R48", "every key of values.yaml refuses a value of each other kind, and text that is none of its own")
def kinds():
    import copy

    import jsonschema
    import yaml

    values = yaml.safe_load((render.CHART / "values.yaml").read_text())
    validator = jsonschema.Draft7Validator(json.loads((render.CHART / "values.schema.json").read_text()))
    validator.validate(values)
    accepted = []
    for path, value in leaves(values):
        name = ".".join(path)
        for kind, wrong in KINDS.items():
            fits = isinstance(value, bool) and kind == "flag" or kind in ANYTHING.get(name, ())
            if kind == "null" and name.startswith(NULLABLE):
                continue
            changed = copy.deepcopy({path[0]: values[path[0]]})
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            # The message of every engine of Helm's begins with where the error is.
            found = [error for error in validator.iter_errors(changed) if tuple(error.absolute_path)[: len(path)] == path]
            if bool(found) == fits:
                accepted.append(f"{name}: {kind} {'refused' if found else 'accepted'}")
    equal(accepted, [])


EXTERNAL = render.PROD | {"preset": "dev"}
NO_S3 = {"objectStorage": {"bundled": {"enabled": False}}}
NO_ETCD = {"etcd": {"bundled": {"enabled": False}}}

# (values, the beginning of the message)
COMBINATIONS = [
    ({"replicate": {"enabled": True, "drain": {"timeoutSeconds": 15}}}, "replicate.terminationGracePeriodSeconds: 30"),
    ({"objectStorage": {"caSecret": "s"}}, "objectStorage.caSecret:"),
    ({"replicate": {"enabled": True, "targets": {"east": {"existingSecret": "s", "caKey": "", "tokenKey": ""}}}}, "replicate.targets.east: neither caKey"),
    ({"replicate": {"enabled": True, "extraEnv": [{"name": "POD_IP", "value": "x"}]}}, "replicate.extraEnv: POD_IP is there already"),
    ({"tls": {"existingSecret": "tls"}}, "tls.enabled: must be true"),
    ({"tls": {"clientAuth": "required"}}, "tls.enabled: must be true"),
    ({"tls": {"minVersion": "TLS1.3"}}, "tls.enabled: must be true"),
    ({"tls": {"certManager": {"enabled": True, "issuerRef": {"name": "i"}}}}, "tls.enabled: must be true"),
    ({"tls": {"enabled": True, "existingSecret": "tls", "certManager": {"enabled": True, "issuerRef": {"name": "i"}}}}, "tls.existingSecret: set together"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "tls.certManager.issuerRef.name:"),
    ({"tls": {"enabled": True, "certKey": "cert", "certManager": {"enabled": True, "issuerRef": {"name": "i"}}}}, "tls.caKey, tls.certKey, tls.keyKey:"),
    ({"auth": {"existingSecret": "tokens"}}, "auth.enabled: must be true"),
    ({"node": {"extraVolumes": [{"name": "tls"}]}}, "node.extraVolumes: tls is there already"),
    ({"node": {"extraVolumes": [{"name": "own-config"}]}}, "node.extraVolumes: own-config is there already"),
    ({"etcd": {"endpoints": ["e:2379"]}}, "etcd.endpoints: set together with etcd.bundled"),
    (NO_ETCD, "etcd.endpoints: name at least one"),
    ({"etcd": {"tls": {"enabled": True}}}, "etcd.auth, etcd.tls: the bundled etcd"),
    ({"etcd": {"bundled": {"replicas": 3, "persistence": {"enabled": False}}}}, "etcd.bundled.persistence.enabled:"),
    (render.merged(EXTERNAL, {"etcd": {"tls": {"enabled": True}}}), "etcd.tls.existingSecret:"),
    (render.merged(EXTERNAL, {"etcd": {"auth": {"enabled": True}}}), "etcd.auth.existingSecret:"),
    ({"objectStorage": {"endpoint": "s3"}}, "objectStorage.endpoint: set together"),
    ({"objectStorage": {"provider": "gcp"}}, "objectStorage.provider: gcp"),
    ({"objectStorage": {"auth": "workloadIdentity"}}, "objectStorage.auth:"),
    (NO_S3, "objectStorage.endpoint: provider s3compatible needs"),
    (render.merged(NO_S3, {"objectStorage": {"endpoint": "s3"}}), "objectStorage.existingSecret:"),
    (render.merged(NO_S3, {"objectStorage": {"provider": "filesystem"}}), "objectStorage.existingClaim: provider filesystem needs"),
    (render.merged(EXTERNAL, {"objectStorage": {"existingClaim": "c"}}), "objectStorage.existingClaim: only provider filesystem"),
    ({"objectStorage": {"bucket": "a/b"}}, "objectStorage.bucket:"),
    (render.merged(EXTERNAL, {"objectStorage": {"provider": "azure"}}), "objectStorage.account: provider azure"),
    (render.merged(EXTERNAL, {"objectStorage": {"account": "mystorage"}}), "objectStorage.account: only provider azure"),
    (render.merged(NO_S3, {"objectStorage": {"provider": "filesystem", "existingClaim": "c", "endpoint": "s3"}}), "objectStorage.endpoint: provider filesystem"),
    ({"storage": {"type": "quorum"}}, "storage.type: quorum needs logstore.enabled"),
    ({"storage": {"also": ["quorum"]}}, "storage.also: quorum needs logstore.enabled"),
    (render.merged(render.QUORUM, {"logstore": {"replicas": 2}}), "logstore.replicas: 2 is less than the 3"),
    (render.merged(render.QUORUM, {"config": {"woodpecker": {"client": {"quorum": {"quorumSelectStrategy": {"replicas": 5}}}}}}), "logstore.replicas: 3 is less than the 5"),
    ({"logstore": {"enabled": True, "zone": {"source": "static"}}}, "logstore.zone.value:"),
    ({"node": {"terminationGracePeriodSeconds": 100}}, "node.terminationGracePeriodSeconds: 100 is not more than the 100"),
    ({"logstore": {"drain": {"timeoutSeconds": 200}}}, "logstore.terminationGracePeriodSeconds:"),
    ({"coord": {"ports": {"grpc": 9091}}}, "coord.ports:"),
    ({"node": {"extraEnv": [{"name": "POD_IP", "value": "x"}]}}, "node.extraEnv: POD_IP is there already"),
    ({"node": {"extraEnv": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]}}, "node.extraEnv: A is there already"),
    ({"node": {"extraVolumes": [{"name": "tmp"}]}}, "node.extraVolumes: tmp is there already"),
    ({"config": {"common": {"preCreatedTopic": {"enabled": True}}}}, "config.common.preCreatedTopic.names: must name"),
    ({"node": {"autoscaling": {"minReplicas": 11}}}, "node.autoscaling.minReplicas: 11"),
    ({"node": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}}, "node.resources.requests.cpu: autoscaling"),
    ({"node": {"resources": {"requests": {"cpu": None}}, "resourceGroups": [{"name": "a", "autoscaling": {"enabled": True}}]}}, "node.resourceGroups a: resources.requests.cpu: autoscaling"),
    ({"node": {"resourceGroups": [{"name": "a"}, {"name": "a"}]}}, "node.resourceGroups: a is there twice"),
    ({"node": {"resourceGroups": [{"name": "a", "autoscaling": {"minReplicas": 11}}]}}, "node.resourceGroups a: autoscaling.minReplicas: 11"),
]

PRODUCTION = [
    ({}, "etcd.endpoints: name at least one"),
    ({"etcd": {"bundled": {"enabled": True}, "endpoints": []}}, "etcd.bundled.enabled: preset prod"),
    ({"objectStorage": {"bundled": {"enabled": True}, "provider": "s3compatible", "auth": "static"}}, "objectStorage.bundled.enabled: preset prod"),
    ({"coord": {"replicas": 1}}, "coord.replicas: preset prod"),
    ({"node": {"replicas": 1}}, "node.replicas: preset prod"),
    ({"node": {"resourceGroups": [{"name": "a", "replicas": 1}]}}, "node.resourceGroups a: replicas: preset prod"),
    ({"tls": {"enabled": True}}, "tls.existingSecret: preset prod"),
    ({"auth": {"enabled": True}}, "auth.existingSecret: preset prod"),
    ({"node": {"autoscaling": {"enabled": True, "minReplicas": 1}}}, "node.replicas: preset prod"),
    ({"logstore": {"enabled": True, "persistence": {"enabled": False}}}, "logstore.persistence.enabled: preset prod"),
]


@check("R5", f"{len(COMBINATIONS) + len(PRODUCTION) + 1} impossible combinations are refused with key and reason")
def combinations():
    for values, beginning in COMBINATIONS:
        assert beginning in render.refusal(values), f"{values}: {render.refusal(values)}"
    for values, beginning in PRODUCTION:
        full = render.merged(render.PROD, values) if values else {}
        assert beginning in render.refusal(full, files=PROD_FILE), f"{values}: {render.refusal(full, files=PROD_FILE)}"
    sleeping = {"coord": {"drain": {"preStopSeconds": 5}}}
    assert "coord.drain.preStopSeconds: needs Kubernetes 1.30" in render.refusal(sleeping, kubernetes="1.29")
    coordinator = render.main_container(render.template(sleeping, kubernetes="1.30"), "Deployment", "s-streaming-coord")
    equal(coordinator["lifecycle"], {"preStop": {"sleep": {"seconds": 5}}})


@check("R39", "values.yaml and values.schema.json know the same keys")
def in_step():
    import yaml

    values = yaml.safe_load((render.CHART / "values.yaml").read_text())
    schema = json.loads((render.CHART / "values.schema.json").read_text())

    def compare(value, rule, path):
        if "$ref" in rule:
            return
        if "properties" in rule:
            equal(sorted(value), sorted(set(rule["properties"]) - {"global"}), f"keys of {path or 'values'}")
            equal(rule.get("additionalProperties"), False, f"{path}: additionalProperties")
            for key, inner in value.items():
                compare(inner, rule["properties"][key], f"{path}.{key}".lstrip("."))

    compare(values, schema, "")
    comments = (render.CHART / "values.yaml").read_text()
    for key in values:
        assert f"\n{key}:" in comments, key


@check("R41", "the schema of `config` is what the binary takes")
def config_schema():
    import subprocess
    import sys

    script = tools.ROOT / "helm" / "tests" / "config-schema"
    done = subprocess.run([sys.executable, script, str(tools.streaming()), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
