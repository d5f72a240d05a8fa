"""Security, secrets, identity and what can be added to pods."""

import random

import yaml

from chart import render
from chart.checks.shape import validator
from chart.registry import check, equal


def restricted(where, spec):
    """The PodSecurity standard "restricted", and what we ask for beyond it."""
    pod = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        assert not spec.get(field), f"{where}: {field}"
    equal(spec.get("automountServiceAccountToken"), False, f"{where}: automountServiceAccountToken")
    equal(spec.get("enableServiceLinks"), False, f"{where}: enableServiceLinks")
    for volume in spec.get("volumes", []):
        kind = (set(volume) - {"name"}).pop()
        assert kind in ("configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim", "downwardAPI", "csi", "ephemeral"), f"{where}: volume {kind}"
    for container in render.containers(spec):
        own = container.get("securityContext", {})
        here = f"{where}/{container['name']}"
        equal(own.get("allowPrivilegeEscalation"), False, f"{here}: allowPrivilegeEscalation")
        equal(own.get("capabilities"), {"drop": ["ALL"]}, f"{here}: capabilities")
        equal(own.get("runAsNonRoot", pod.get("runAsNonRoot")), True, f"{here}: runAsNonRoot")
        assert own.get("runAsUser", pod.get("runAsUser")) not in (None, 0), f"{here}: runAsUser"
        equal(own.get("seccompProfile", pod.get("seccompProfile")), {"type": "RuntimeDefault"}, f"{here}: seccompProfile")
        assert not own.get("privileged"), here
        for port in container.get("ports", []):
            assert not port.get("hostPort"), here


@check("R8", "every pod satisfies PodSecurity restricted; ours run as 65532 on a read-only root")
def pod_security():
    for name, objects in render.every_render():
        for where, _, spec in render.pods(objects):
            restricted(f"{name} {where}", spec)
            if where != "Pod/s-streaming-test":
                equal(spec["securityContext"]["runAsUser"], 65532)
                equal(spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"], True, where)
            for container in spec["containers"]:
                assert not container["image"].endswith(":latest") and (":" in container["image"]), container["image"]


SECRET_KEYS = ("accesskeyid", "secretaccesskey", "password", "username", "token")


def keys(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)


@check("R9", "no secret in a ConfigMap, an annotation, a variable or the notes")
def no_leak():
    import base64

    for name, values, files in render.every_case():
        # What Helm makes is another one at each render, so objects and notes are of the same.
        objects, notes = render.installed(values, files)
        secrets = [base64.b64decode(data).decode() for item in render.of_kind(objects, "Secret") for data in item.get("data", {}).values()]
        text = yaml.safe_dump([item for item in objects if item["kind"] != "Secret"]) + notes
        for secret in secrets:
            assert len(secret) >= 32 and secret not in text, f"{name}: a secret outside its Secret"
        for item in render.of_kind(objects, "ConfigMap"):
            for document in item["data"].values():
                # An account's name on Azure, which an identity needs as well.
                names = {"accessKeyID"} if "cloudProvider: azure" in document else set()
                found = [key for key in set(keys(yaml.safe_load(document))) - names if key.lower() in SECRET_KEYS]
                assert not found, f"{name} {item['metadata']['name']}: {found}"
        for where, _, spec in render.pods(objects):
            for container in render.containers(spec):
                for variable in container.get("env", []):
                    secret = not variable["name"].endswith("_FILE") and any(key in variable["name"].lower().replace("_", "") for key in SECRET_KEYS)
                    assert not secret or "secretKeyRef" in variable["valueFrom"], f"{name} {where}: {variable}"


@check("R10", "with existing Secrets none is rendered, and their own key names are used")
def existing_secrets():
    objects = render.template(files=[render.CHART / "ci/external-static-values.yaml"])
    equal(render.of_kind(objects, "Secret"), [])
    variables = render.environment(render.main_container(objects, "Deployment", "s-streaming-node"))
    equal(variables["STREAMING_CONF_MINIO_ACCESSKEYID"]["valueFrom"]["secretKeyRef"], {"name": "s3-keys", "key": "id"})
    equal(variables["STREAMING_CONF_MINIO_SECRETACCESSKEY"]["valueFrom"]["secretKeyRef"], {"name": "s3-keys", "key": "key"})
    objects = render.template(files=[render.CHART / "ci/three-etcds-values.yaml"], name="x")
    equal(render.of_kind(objects, "Secret"), [], "bundled store with an existing Secret")
    objects = render.template(files=[render.CHART / "ci/prod-aws-values.yaml"])
    equal(render.of_kind(objects, "Secret"), [])
    variables = render.environment(render.main_container(objects, "Deployment", "s-streaming-coord"))
    equal(variables["STREAMING_CONF_ETCD_AUTH_PASSWORD"]["valueFrom"]["secretKeyRef"], {"name": "etcd-user", "key": "password"})


@check("R52", "object storage is for those who use it: log stores, what ships and the test pod have neither its keys nor its claim, and are not told of it")
def objects_for_whom():
    both = {"replicate": {"enabled": True}, "storage": {"type": "quorum", "also": ["object"]}, "logstore": {"enabled": True}}
    for scenario in ("external-static", "filesystem"):
        objects = render.template(both, files=[render.CHART / f"ci/{scenario}-values.yaml"])
        users = set()
        for _, metadata, spec in render.pods(objects):
            role = metadata["labels"]["app.kubernetes.io/component"]
            keys = [name for container in render.containers(spec) for name in render.environment(container) if "MINIO" in name]
            if keys or "objects" in [volume["name"] for volume in spec.get("volumes", [])]:
                users.add(role)
        equal(users, {"coord", "node"}, scenario)
        for role in ("coord", "node", "logstore", "replicate"):
            equal("minio" in render.configuration(objects, role), role in users, f"{scenario} {role}")


@check("R11", "workload identity: annotations and labels arrive, keys do not")
def workload_identity():
    for scenario, annotation in [
        ("prod-aws", "eks.amazonaws.com/role-arn"),
        ("gcp", "iam.gke.io/gcp-service-account"),
        ("azure", "azure.workload.identity/client-id"),
    ]:
        objects = render.template(files=[render.CHART / f"ci/{scenario}-values.yaml"])
        account = render.named(objects, "ServiceAccount", "s-streaming")
        assert annotation in account["metadata"]["annotations"], scenario
        for where, metadata, spec in render.pods(objects):
            equal(spec["serviceAccountName"], "s-streaming", where)
            assert not [name for container in render.containers(spec) for name in render.environment(container) if "MINIO" in name], where
            if scenario == "azure" and metadata["labels"]["app.kubernetes.io/component"] in ("coord", "node"):
                equal(metadata["labels"]["azure.workload.identity/use"], "true", where)


@check("R26", "a log store's zone: from the pod's label where Kubernetes sets it, from a value, or not at all")
def zones():
    def variable(kubernetes, zone):
        objects = render.template(render.merged(render.QUORUM, {"logstore": {"zone": zone}}), kubernetes=kubernetes)
        return render.environment(render.main_container(objects, "StatefulSet", "s-streaming-logstore")).get("STREAMING_CONF_WOODPECKER_LOGSTORE_ZONE")

    label = "metadata.labels['topology.kubernetes.io/zone']"
    equal(variable("1.35", {})["valueFrom"]["fieldRef"]["fieldPath"], label)
    equal(variable("1.34", {}), None)
    equal(variable("1.35", {"source": "none"}), None)
    equal(variable("1.20", {"source": "static", "value": "a"})["value"], "a")
    near = "STREAMING_CONF_WOODPECKER_CLIENT_QUORUM_AZ"
    for values, kubernetes, wanted in [(render.QUORUM, "1.35", {near}), (render.QUORUM, "1.34", set()), ({}, "1.35", set())]:
        objects = render.template(values, kubernetes=kubernetes)
        equal({near} & set(render.environment(render.main_container(objects, "Deployment", "s-streaming-node"))), wanted, f"{values} {kubernetes}")


LISTS = ("extraEnv", "extraVolumes", "extraVolumeMounts", "initContainers", "sidecars", "extraArgs", "extraEnvFrom", "tolerations", "hostAliases")
PLACES = {"extraEnv": "env", "extraVolumeMounts": "volumeMounts", "extraArgs": "args", "extraEnvFrom": "envFrom"}
IN_POD = {"extraVolumes": "volumes", "sidecars": "containers"}


@check("R35", "everything that can be added to a role's pods arrives, once, on every role")
def extensions():
    file = render.CHART / "ci/every-extension-values.yaml"
    values, objects = yaml.safe_load(file.read_text()), render.template(files=[file])
    for role, kind in [("coord", "Deployment"), ("node", "Deployment"), ("logstore", "StatefulSet"), ("replicate", "Deployment")]:
        template = render.named(objects, kind, f"s-streaming-{role}")["spec"]["template"]
        spec, container = template["spec"], template["spec"]["containers"][0]
        for key, wanted in values[role].items():
            if key == "enabled":
                continue
            if key in ("podLabels", "podAnnotations"):
                got = template["metadata"]["labels" if key == "podLabels" else "annotations"]
                assert wanted.items() <= got.items(), f"{role}.{key}"
            elif key in LISTS:
                got = container[PLACES[key]] if key in PLACES else spec[IN_POD.get(key, key)]
                for entry in wanted:
                    equal([item for item in got if item == entry], [entry], f"{role}.{key}")
            else:
                equal(spec[key], wanted, f"{role}.{key}")
    # A pod of `helm test` that no machine takes would say nothing.
    test = render.named(objects, "Pod", "s-streaming-test")["spec"]
    places = ("nodeSelector", "tolerations", "affinity", "hostAliases", "dnsConfig", "priorityClassName", "runtimeClassName", "schedulerName")
    equal({key: test[key] for key in places}, {key: values["coord"][key] for key in places}, "the test pod")
    alone = [{key: value} for key, value in values["node"].items()]
    for part in alone:
        render.template({"coord": part, "node": part, "logstore": part | {"enabled": True}, "replicate": part | {"enabled": True}})
    render.named(objects, "ConfigMap", "s-more")
    # Any of them together, on any role, must stay what Kubernetes takes. The same ones every time.
    chance = random.Random(35)
    for attempt in range(12):
        chosen = {role: {key: value for key, value in values["node"].items() if chance.random() < 0.5} for role in ("coord", "node", "logstore", "replicate")}
        for item in render.template(render.merged(chosen, {"logstore": {"enabled": True}, "replicate": {"enabled": True}}), kubernetes="1.35"):
            errors = list(validator("1.35", item["kind"], item["apiVersion"]).iter_errors(item))
            assert not errors, f"attempt {attempt}, {chosen}: {item['kind']}: {errors[0].json_path}: {errors[0].message}"


@check("R55", "a role's image and security contexts win over the common ones, key by key, and null takes a key away; the others keep theirs; Helm 3.17, 3.18 and 4")
def of_one_role():
    digest = "sha256:" + 64 * "0"
    common = {"registry": "r.example.com", "repository": "db/streaming", "digest": digest}
    own = {
        "image": {"repository": "db/node", "tag": "1.2.3", "pullPolicy": "Always"},
        "podSecurityContext": {"fsGroup": None, "supplementalGroups": [7]},
        "containerSecurityContext": {"readOnlyRootFilesystem": False},
    }
    for role, kind in [("coord", "Deployment"), ("node", "Deployment"), ("logstore", "StatefulSet"), ("replicate", "Deployment")]:
        for helm in render.helms():
            values = render.merged(render.QUORUM, {"replicate": {"enabled": True}, "image": common}, {role: own})
            found = {metadata["labels"]["app.kubernetes.io/component"]: spec for _, metadata, spec in render.pods(render.template(values, helm=helm))}
            equal(found.keys(), {"coord", "node", "logstore", "replicate", "etcd", "s3", "test"})
            # Where a coordinator runs, the pod of `helm test` can.
            with_own = {role, "test"} if role == "coord" else {role}
            for name, spec in found.items():
                container = spec["containers"][0]
                pod, inner = spec["securityContext"], container["securityContext"]
                got = (pod.get("fsGroup", "taken away"), pod.get("supplementalGroups"), pod["runAsUser"], inner["readOnlyRootFilesystem"], inner["capabilities"])
                wanted = ("taken away", [7], 65532, False, {"drop": ["ALL"]}) if name in with_own else (65532, None, 65532, True, {"drop": ["ALL"]})
                equal(got, wanted, f"helm {helm}: {role} has its own: {name}")
                if name not in ("etcd", "s3"):
                    wanted = ("r.example.com/db/node:1.2.3", "Always") if name in with_own else (f"r.example.com/db/streaming@{digest}", "IfNotPresent")
                    equal((container["image"], container["imagePullPolicy"]), wanted, f"helm {helm}: {role} has its own: {name}")
