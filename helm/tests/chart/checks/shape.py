"""That it renders, and that what it renders is what Kubernetes takes."""

import functools
import json
import pathlib
import tempfile

import jsonschema
import kubernetes_validate
import referencing
import yaml

from chart import render
from chart.registry import check, equal

KUBERNETES = ("1.27", "1.31", "1.35", "1.37")
CUSTOM = ("ServiceMonitor", "PrometheusRule", "Certificate")


@check("R1", "helm lint --strict and helm package, Helm 3.17, 3.18 and 4")
def lint():
    for version in render.helms():
        for values in [None, render.CHART / "values-dev.yaml", render.CHART / "ci/every-extension-values.yaml"]:
            done = render.run_helm(version, "lint", "--strict", render.CHART, *(["-f", values] if values else []))
            assert done.returncode == 0, f"helm {version} lint {values}: {done.stdout}{done.stderr}"
        with tempfile.TemporaryDirectory() as scratch:
            done = render.run_helm(version, "package", render.CHART, "-d", scratch)
            assert done.returncode == 0 and list(pathlib.Path(scratch).glob("streaming-*.tgz")), done.stderr


@functools.cache
def validator(version, kind, group_version):
    home = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    group = group_version.split("/")
    name = f"{kind}-{'-'.join([group[0].split('.')[0], *group[1:]])}".lower()
    registry = definitions(home) @ referencing.Registry()
    return jsonschema.Draft202012Validator(json.loads((home / f"{name}.json").read_text()), registry=registry)


@functools.cache
def definitions(home):
    return referencing.Resource.from_contents(json.loads((home / "_definitions.json").read_text()))


@check("V2", f"every preset and scenario passes the strict schemas of Kubernetes {', '.join(KUBERNETES)}")
def strict_schemas():
    for kubernetes in KUBERNETES:
        for name, objects in render.every_render(kubernetes=kubernetes):
            for item in objects:
                if item["kind"] in CUSTOM:
                    continue
                errors = list(validator(kubernetes, item["kind"], item["apiVersion"]).iter_errors(item))
                assert not errors, f"{name} on {kubernetes}: {item['kind']}: {errors[0].json_path}: {errors[0].message}"


@check("R2", "Helm 3.17, 3.18 and 4 render the same objects")
def same_on_all():
    first, *others = render.helms()
    for values in [*render.PRESETS, *render.SCENARIOS]:
        wanted = without_random(render.template(files=[values], helm=first))
        for other in others:
            equal(without_random(render.template(files=[values], helm=other)), wanted, f"{values.name} on Helm {other} and {first}")


def without_random(objects):
    return [item for item in objects if item["kind"] != "Secret"]


@check("R3", "on Kubernetes 1.20: old API versions, none of the newer fields")
def old_kubernetes():
    for name, objects in render.every_render(kubernetes="1.20"):
        for item in render.of_kind(objects, "PodDisruptionBudget"):
            equal(item["apiVersion"], "policy/v1beta1", name)
        for item in render.of_kind(objects, "HorizontalPodAutoscaler"):
            equal(item["apiVersion"], "autoscaling/v2beta2", name)
        text = yaml.safe_dump([item for item in objects if item["kind"] != "ConfigMap"])
        for field in ("matchLabelKeys", "unhealthyPodEvictionPolicy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds", "sleep:"):
            assert field not in text, f"{name}: {field} on 1.20"
    new = yaml.safe_dump(render.template(render.QUORUM, kubernetes="1.35"))
    for field in ("matchLabelKeys", "unhealthyPodEvictionPolicy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds", "policy/v1\n"):
        assert field in new, f"{field} is missing on 1.35"


@check("R6", "two releases and very long names do not clash, and every name fits")
def names():
    long = "a" * 50
    releases = ["one", "two", long + "bcd", long + "bce"]
    seen = set()
    for release in releases:
        for scenario in [{}, render.QUORUM]:
            for item in render.template(scenario, name=release):
                limit = 52 if item["kind"] == "StatefulSet" else 63
                name = item["metadata"]["name"]
                assert len(name) <= limit, f"{item['kind']} {name}: {len(name)} characters"
                for label in item["metadata"].get("labels", {}).values():
                    assert len(label) <= 63, f"label {label}"
                if scenario == {}:
                    assert (item["kind"], name) not in seen, f"{item['kind']}/{name} is in two releases"
                    seen.add((item["kind"], name))
    objects = {release: render.template(name=release) for release in releases}
    selectors = [json.dumps(item["spec"]["selector"]) for of in objects.values() for item in render.of_kind(of, "Service")]
    equal(len(set(selectors)), len(selectors), "selectors of Services")


@check("R7", "safe for server-side apply: no variable, port or volume twice, every port has a protocol, quantities are text")
def server_side_apply():
    for name, objects in render.every_render():
        for where, _, spec in render.pods(objects):
            for container in render.containers(spec):
                variables = [entry["name"] for entry in container.get("env", [])]
                equal(len(set(variables)), len(variables), f"{name} {where}: variables {variables}")
                ports = [(port["containerPort"], port["protocol"]) for port in container.get("ports", [])]
                equal(len(set(ports)), len(ports), f"{name} {where}: ports {ports}")
                for entry in container.get("env", []):
                    assert isinstance(entry.get("value", ""), str), f"{name} {where}: {entry}"
                for kind in container.get("resources", {}).values():
                    for amount in kind.values():
                        assert isinstance(amount, str), f"{name} {where}: quantity {amount!r} is no text"
            volumes = [volume["name"] for volume in spec.get("volumes", [])]
            equal(len(set(volumes)), len(volumes), f"{name} {where}: volumes {volumes}")
        for item in render.of_kind(objects, "Service"):
            for port in item["spec"]["ports"]:
                equal(port.get("protocol"), "TCP", f"{name} {item['metadata']['name']}")
