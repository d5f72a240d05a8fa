"""Rendering the chart, and walking what comes out."""

import functools
import json
import os
import subprocess

import yaml

from chart import tools
from chart.registry import Skip

CHART = tools.ROOT / "helm" / "streaming"
SCENARIOS = sorted((CHART / "ci").glob("*-values.yaml"))
PRESETS = [CHART / "values.yaml", CHART / "values-dev.yaml", CHART / "values-quorum.yaml"]
DEFAULT = "3.17.3"
KUBERNETES = "1.33"

# The least that makes values-prod.yaml whole.
PROD = {
    "preset": "prod",
    "etcd": {"endpoints": ["etcd:2379"], "bundled": {"enabled": False}},
    "objectStorage": {"provider": "aws", "bucket": "logs", "auth": "workloadIdentity", "bundled": {"enabled": False}},
}
QUORUM = {"storage": {"type": "quorum"}, "logstore": {"enabled": True}}

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Unique(Loader):
    """Refuses a key that is there twice."""

    def construct_mapping(self, node, deep=False):
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice in {sorted(keys)}, line {node.start_mark.line}"
        return super().construct_mapping(node, deep)


def run_helm(version, *arguments, values=None, environment=None):
    homes = {f"HELM_{kind}_HOME": str(tools.HOME / f"home-{version}") for kind in ("CACHE", "CONFIG", "DATA")}
    command = [str(tools.helm(version)), *map(str, arguments)]
    if values is not None:
        command += ["-f", "-"]
    return subprocess.run(
        command,
        input=None if values is None else json.dumps(values),
        env={**os.environ, **homes, "KUBECONFIG": "/dev/null", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


@functools.cache
def _template(files, values, name, namespace, kubernetes, helm):
    arguments = ["template", name, CHART, "-n", namespace, "--kube-version", kubernetes]
    for file in files:
        arguments += ["-f", file]
    return run_helm(helm, *arguments, values=json.loads(values))


def template(values=None, files=(), name="s", namespace="wal", kubernetes=KUBERNETES, helm=DEFAULT):
    """All objects, in the order they are rendered."""
    done = _template(tuple(map(str, files)), json.dumps(values or {}), name, namespace, kubernetes, helm)
    assert done.returncode == 0, f"helm {helm} template {files or ''} {values or ''}: {done.stderr.strip()}"
    return [document for document in yaml.load_all(done.stdout, Loader=Unique) if document]


def refusal(values, files=(), helm=DEFAULT, kubernetes=KUBERNETES):
    """What helm says; it must refuse."""
    done = _template(tuple(map(str, files)), json.dumps(values), "s", "wal", kubernetes, helm)
    assert done.returncode != 0, f"helm {helm} rendered {values}, which it must refuse"
    return done.stderr


def installed(values=None, files=()):
    """(all objects but hooks, the notes) of one render, as they are shown before an installation."""
    more = [word for file in files for word in ("-f", file)]
    # Helm 3 wants a cluster even for this.
    done = run_helm("4.2.3", "install", "s", CHART, "-n", "wal", "--dry-run=client", *more, values=values or {})
    assert done.returncode == 0, f"helm install --dry-run {files or ''} {values or ''}: {done.stderr.strip()}"
    objects, notes = done.stdout.split("\nMANIFEST:\n")[1].split("\nNOTES:\n")
    return [document for document in yaml.load_all(objects, Loader=Unique) if document], notes


def every_case():
    """(what it is, its values, its files) of all presets and scenarios."""
    for file in [*PRESETS, *SCENARIOS]:
        yield file.name, {}, [file]
    production = [CHART / "values-prod.yaml"]
    yield "values-prod.yaml", PROD, production
    yield "values-prod.yaml and values-quorum.yaml", PROD, [*production, CHART / "values-quorum.yaml"]


def every_render(**options):
    """(what it is, its objects) of all presets and scenarios."""
    for name, values, files in every_case():
        yield name, template(values, files, **options)


def of_kind(objects, *kinds):
    return [item for item in objects if item["kind"] in kinds]


def named(objects, kind, name):
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


def pods(objects):
    """(what it is, pod metadata, pod spec) of everything that makes pods."""
    for item in objects:
        where = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet"):
            template = item["spec"]["template"]
            yield where, template["metadata"], template["spec"]
        elif item["kind"] == "Pod":
            yield where, item["metadata"], item["spec"]


def containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"]]


def main_container(objects, kind, name):
    return named(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]


def environment(container):
    return {entry["name"]: entry for entry in container.get("env", [])}


def configuration(objects, role, release="s-streaming"):
    return yaml.safe_load(named(objects, "ConfigMap", f"{release}-{role}")["data"]["streaming.yaml"])


def configuration_of(objects, role, workload):
    """What the pods of a workload read. Those of a resource group, whose name goes on behind the role, read what its others do."""
    return configuration(objects, role, workload.split(f"-{role}")[0])


def merged(*maps):
    """Maps in one, the later ones winning."""
    result = {}
    for each in maps:
        for key, value in each.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def helms(versions=tuple(tools.HELMS)):
    """These versions, if they can be fetched."""
    found, missing = [], []
    for version in versions:
        try:
            tools.helm(version)
            found.append(version)
        except Skip as skip:
            missing.append(str(skip))
    if missing:
        raise Skip("; ".join(missing))
    return found
