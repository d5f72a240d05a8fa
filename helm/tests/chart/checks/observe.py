"""Metrics, alerts, dashboards, notes."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import yaml

from chart import render, tools
from chart.registry import Skip, check, equal

MONITORED = render.CHART / "ci/prod-aws-values.yaml"
# What Prometheus itself adds for every target.
BUILT_IN = {"up"}
CALL = re.compile(r'\b(counter|gauge|histogram)!\(\s*"([a-z0-9_]+)"((?:[^()]|\([^()]*\))*)\)', re.S)


def emitted():
    """{metric: (kind, labels)} of every metric in the Rust sources."""
    found = {}
    for directory, below, files in os.walk(tools.ROOT):
        below[:] = [name for name in below if name not in ("target", "tests") and not name.startswith(".")]
        for name in files:
            if name.endswith(".rs"):
                for kind, metric, rest in CALL.findall(pathlib.Path(directory, name).read_text()):
                    found.setdefault(metric, (kind, set()))[1].update(re.findall(r'"([a-z_]+)"\s*=>', rest))
    return found


@functools.cache
def series():
    """{series: labels}: a histogram has three."""
    metrics = emitted()
    result = {name: {"service", "namespace", "pod", "job", "instance"} for name in BUILT_IN}
    for name, (kind, labels) in metrics.items():
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        for suffix in suffixes:
            result[name + suffix] = labels | {"service", "namespace", "pod", "job", "instance"} | ({"le"} if suffix == "_bucket" else set())
    return result


FUNCTIONS = {"offset", "sum", "max", "min", "avg", "count", "by", "without", "rate", "increase", "irate", "absent", "histogram_quantile", "label_values", "or", "and", "unless", "le"}


def used(expression):
    """(series, labels matched) in a PromQL expression."""
    for name, matchers in re.findall(r"([a-z_:][a-z0-9_:]*)\s*\{([^}]*)\}", expression):
        yield name, set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
    bare = re.sub(r"[a-z_:][a-z0-9_:]*\s*\{[^}]*\}", "", expression)
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\b(by|without)\s*\([^)]*\)', "", bare)
    for name in re.findall(r"\b[a-z_:][a-z0-9_:]*\b", bare):
        if name not in FUNCTIONS and ("_" in name or name in BUILT_IN):
            yield name, set()


def grouped(expression):
    return {label.strip() for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression) for label in group.split(",")}


def assert_exists(where, expression):
    known = series()
    found = list(used(expression))
    assert found, f"{where}: no metric in {expression}"
    labels = set().union(*(known.get(name, set()) for name, _ in found))
    for name, matched in found:
        assert name in known, f"{where}: no source emits {name}"
        assert matched <= known[name], f"{where}: {name} has no label {sorted(matched - known[name])}"
    assert grouped(expression) <= labels, f"{where}: groups by {sorted(grouped(expression) - labels)}"


@check("V30", "ServiceMonitor and PrometheusRule are valid by their CRDs' schemas")
def custom_resources():
    if not shutil.which("node"):
        raise Skip("node is not installed")
    home = tools.prometheus_models()
    items = render.of_kind(render.template(files=[MONITORED]), "ServiceMonitor", "PrometheusRule")
    equal(len(items), 2)
    script = home / "validate.mjs"
    script.write_text(
        "import * as models from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';\n"
        "let text = ''; for await (const chunk of process.stdin) text += chunk;\n"
        "for (const item of JSON.parse(text)) new models[item.kind](item).validate();\n"
    )

    def validate(items):
        return subprocess.run(["node", script], input=json.dumps(items), capture_output=True, text=True)

    done = validate(items)
    assert done.returncode == 0, done.stderr
    render.of_kind(items, "ServiceMonitor")[0]["spec"]["endpoints"][0]["port"] = 9091
    assert validate(items).returncode != 0, "the validator passes a wrong port"


@check("R30", "the ServiceMonitor selects exactly one Service a role, so each pod is scraped once")
def service_monitor():
    objects = render.template(render.merged(render.QUORUM, {"replicate": {"enabled": True}, "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}}}}))
    monitor = render.of_kind(objects, "ServiceMonitor")[0]
    equal(monitor["metadata"]["labels"]["release"], "p")
    selector = monitor["spec"]["selector"]
    expression = selector["matchExpressions"][0]

    def selected(labels):
        return selector["matchLabels"].items() <= labels.items() and labels.get(expression["key"]) in expression["values"]

    services = [item for item in render.of_kind(objects, "Service") if selected(item["metadata"]["labels"])]
    equal(sorted(item["metadata"]["name"] for item in services), ["s-streaming-coord", "s-streaming-logstore", "s-streaming-node", "s-streaming-replicate"])
    port = monitor["spec"]["endpoints"][0]["port"]
    for service in services:
        assert port in [entry["name"] for entry in service["spec"]["ports"]], service["metadata"]["name"]


@check("R31", "dashboards: valid JSON, label and folder can be chosen, every metric and label exists in the sources")
def dashboards():
    chosen = {"dashboards": {"enabled": True, "label": "grafana", "labelValue": "yes", "folder": "WAL"}}
    item = render.named(render.template(chosen), "ConfigMap", "s-streaming-dashboards")
    equal((item["metadata"]["labels"]["grafana"], item["metadata"]["annotations"]["grafana_folder"]), ("yes", "WAL"))
    files = sorted((render.CHART / "dashboards").glob("*.json"))
    equal(sorted(item["data"]), [file.name for file in files])
    for file in files:
        board = json.loads(item["data"][file.name])
        equal(board, json.loads(file.read_text()))
        ids = [panel["id"] for panel in board["panels"]]
        equal(len(set(ids)), len(ids), f"{file.name}: ids of panels")
        for panel in board["panels"]:
            for target in panel["targets"]:
                assert_exists(f"{file.name}: {panel['title']}", target["expr"])
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                assert_exists(f"{file.name}: ${variable['name']}", re.search(r"label_values\((.*),", variable["definition"])[1])


def rules():
    rule = render.of_kind(render.template(files=[MONITORED]), "PrometheusRule")[0]
    return rule["spec"]["groups"]


def expressions():
    """Every expression in the dashboards and alerts."""
    for file in (render.CHART / "dashboards").glob("*.json"):
        yield from (target["expr"] for panel in json.loads(file.read_text())["panels"] for target in panel["targets"])
    yield from (rule["expr"] for group in rules() for rule in group["rules"])


MILVUS = "## Names of Milvus"
PAGES = [tools.ROOT / "docs" / page for page in ("operate/observability.md", "replication.md")]


@check("R46", "every metric of the sources is in the documentation with its labels, and no other is")
def documented():
    rows = {}
    for page in PAGES:
        # Behind the heading stand names that are not ours.
        for line in page.read_text().split(MILVUS)[0].splitlines():
            cells = [set(re.findall(r"`([a-z_]+)`", cell)) for cell in line.split("|")[1:-1]]
            metrics = {name for name in (cells[0] if cells else ()) if name.startswith(("milvus_", "process_", "streaming_", "woodpecker_"))}
            assert not metrics & rows.keys(), f"{page.name}: {metrics & rows.keys()} is there twice"
            rows |= dict.fromkeys(metrics, cells[1] if len(cells) == 3 else None)
    known = emitted()
    equal(sorted(rows.keys() - known.keys()), [], "in the documentation, and in no source")
    equal(sorted(known.keys() - rows.keys()), [], "in the sources, and not in the documentation")
    for name, labels in rows.items():
        # Those of what ships share their labels, which stand above their table.
        if labels is not None:
            equal(sorted(labels), sorted(known[name][1]), f"labels of {name}")


@check("R51", "what the documentation says of the metrics of Milvus is so: what is called the same is in the sources, what is named instead as well, and nothing else of theirs")
def of_milvus():
    table = PAGES[0].read_text().split(MILVUS)[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    known = {name for name in emitted() if name.startswith("milvus_")}
    named = set()
    for of_theirs, ours in rows:
        theirs = {f"milvus_{name}" for name in re.findall(r"`([a-z_]+)`", of_theirs)}
        assert theirs and not theirs & named, f"{of_theirs}: nothing, or twice"
        named |= theirs
        instead = {name for name in re.findall(r"`([a-z_]+)`", ours) if name.startswith(("milvus_", "streaming_", "woodpecker_"))}
        equal(sorted(instead - emitted().keys()), [], f"named instead of {of_theirs}, and in no source")
        same = ours == "the same" or ours.startswith("the same, ")
        equal(sorted(theirs & known), sorted(theirs) if same else [], f"{of_theirs}: {ours}")
    assert len(named) > 80, f"the page has another form: {len(named)} names"


@check("R32", "every metric and label in the alerts exists in the sources")
def alerts():
    for group in rules():
        assert len(group["rules"]) >= 6
        for rule in group["rules"]:
            assert_exists(rule["alert"], rule["expr"])
            assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"], rule["alert"]


# What is so in every situation that does not say otherwise; then series, minutes until it fires, and the alerts that fire then.
S = 'namespace="wal",service="s-streaming-node",pod="p"'
C = 'namespace="wal",service="s-streaming-coord",pod="c"'
R = 'namespace="wal",service="s-streaming-replicate",pod="r"'
L = 'namespace="wal",service="s-streaming-logstore",pod="l"'
WELL = {f"up{{{S}}}": "1x60", f"up{{{C}}}": "1x60", f"milvus_streamingcoord_leader{{{C}}}": "1x60"}
STANDBY = C.replace('"c"', '"d"')
SITUATIONS = [
    ({f"up{{{S}}}": "0x60"}, 5, {"StreamingProcessDown", "StreamingNoNode"}),
    ({}, 5, set()),
    # Not even looked for any more.
    ({f"up{{{S}}}": "_x60"}, 5, {"StreamingNoNode"}),
    ({f"up{{{C}}}": "0x60", f"milvus_streamingcoord_leader{{{C}}}": "_x60"}, 5, {"StreamingProcessDown", "StreamingNoCoordinator"}),
    # Two that stand by are up and well.
    ({f"up{{{STANDBY}}}": "1x60", f"milvus_streamingcoord_leader{{{C}}}": "0x60", f"milvus_streamingcoord_leader{{{STANDBY}}}": "0x60"}, 5, {"StreamingNoCoordinator"}),
    ({f"up{{{STANDBY}}}": "1x60", f"milvus_streamingcoord_leader{{{STANDBY}}}": "0x60"}, 5, set()),
    ({f'milvus_streamingcoord_pchannel_unserved{{{C},channel_name="a"}}': "1x60"}, 8, {"StreamingChannelNotServed"}),
    # A former leader does not know.
    ({f'milvus_streamingcoord_pchannel_unserved{{{C},channel_name="a"}}': "0x60", f'milvus_streamingcoord_pchannel_unserved{{{STANDBY},channel_name="a"}}': "0x60"}, 8, set()),
    ({f'milvus_streamingcoord_pchannel_failing_since{{{C},channel_name="a"}}': "60x60"}, 5, {"StreamingChannelFails"}),
    # For a minute only; and not any more.
    ({f'milvus_streamingcoord_pchannel_failing_since{{{C},channel_name="a"}}': "0x9 540x50"}, 10, set()),
    ({f'milvus_streamingcoord_pchannel_failing_since{{{C},channel_name="a"}}': "60x5 0x50"}, 10, set()),
    # A full disk fails all channels at once, and is one alert.
    ({f'milvus_wal_failure_total{{{S},channel_name="{name}",code="WAL_DISK_FULL"}}': "_x9 1x50" for name in "ab"}, 12, {"StreamingDiskFull"}),
    ({f'milvus_wal_failure_total{{{S},channel_name="a",code="WAL_DISK_FULL"}}': "3x60"}, 40, set()),
    ({f'milvus_wal_failure_total{{{S},channel_name="a",code="STORE_UNAVAILABLE"}}': "_x9 1x50"}, 12, set()),
    ({f'milvus_wal_append_oldest_waiting_seconds{{{S},channel_name="a"}}': "6x60"}, 5, {"StreamingAppendsWait"}),
    ({f'milvus_wal_append_oldest_waiting_seconds{{{S},channel_name="a"}}': "4x60"}, 5, set()),
    ({f'streaming_limit_refused_total{{{S},limit="connections"}}': "0+1x60"}, 12, {"StreamingLimitReached"}),
    ({f'streaming_limit_refused_total{{{S},limit="connections"}}': "0x9 1x50"}, 30, set()),
    ({f'woodpecker_object_request_duration_seconds_count{{{S},operation="put",outcome="ok"}}': "0+90x60", f'woodpecker_object_request_duration_seconds_count{{{S},operation="put",outcome="timeout"}}': "0+10x60"}, 15, {"StreamingObjectStoreFails"}),
    ({f'woodpecker_object_request_duration_seconds_count{{{S},operation="put",outcome="ok"}}': "0+90x60", f'woodpecker_object_request_duration_seconds_count{{{S},operation="put",outcome="conflict"}}': "0+10x60"}, 15, set()),
    ({f'woodpecker_etcd_request_duration_seconds_count{{{C},operation="get",outcome="ok"}}': "0+5x60", f'woodpecker_etcd_request_duration_seconds_count{{{C},operation="get",outcome="timeout"}}': "0+5x60"}, 15, {"StreamingEtcdFails"}),
    ({f'woodpecker_etcd_request_duration_seconds_count{{{C},operation="get",outcome="ok"}}': "0+5x60"}, 15, set()),
    ({f'milvus_wal_append_message_total{{{S},status="ok"}}': "0+100x60", f'milvus_wal_append_message_total{{{S},status="error"}}': "0+5x60"}, 20, {"StreamingAppendsFail"}),
    ({f"woodpecker_volume_failures_total{{{S}}}": "0x9 1x50"}, 12, {"StreamingVolumeFailed"}),
    ({f"milvus_wal_scan_bad_record_total{{{S}}}": "0x9 1x50"}, 12, {"StreamingBadRecord"}),
    ({f"milvus_wal_scan_time_tick_violation_message_total{{{S}}}": "0x9 1x50"}, 12, {"StreamingTimeTickViolation"}),
    # A counter is not there before it counts.
    ({f"woodpecker_volume_failures_total{{{S}}}": "_x9 1x50"}, 12, {"StreamingVolumeFailed"}),
    ({f"woodpecker_volume_failures_total{{{S}}}": "1x60"}, 40, set()),
    ({f'milvus_wal_scanner_total{{{S},scanner_model="catchup"}}': "1x60"}, 40, {"StreamingReadersBehind"}),
    ({f'milvus_wal_scanner_total{{{S},scanner_model="tailing"}}': "1x60"}, 40, set()),
    ({f"woodpecker_logstore_writable{{{L}}}": "0x60"}, 8, {"StreamingLogStoreReadOnly"}),
    ({f"woodpecker_logstore_disk_free_bytes{{{L}}}": "19x60", f"woodpecker_logstore_disk_total_bytes{{{L}}}": "100x60"}, 15, {"StreamingLogStoreDiskFilling"}),
    ({f"woodpecker_logstore_disk_free_bytes{{{L}}}": "21x60", f"woodpecker_logstore_disk_total_bytes{{{L}}}": "100x60"}, 15, set()),
    ({f"woodpecker_logstore_corrupt_total{{{L}}}": "_x9 1x50"}, 12, {"StreamingLogStoreCorrupt"}),
    ({f"woodpecker_quorum_segments_short_of_replicas{{{S}}}": "2x60"}, 20, {"StreamingShortOfReplicas"}),
    ({f"woodpecker_unsealed_age_seconds{{{C}}}": "3700x60"}, 20, {"StreamingSealingBehind"}),
    ({f'streaming_reload_failures_total{{{S},what="certificates"}}': "0+6x60"}, 20, {"StreamingSecretsNotReloaded"}),
    # One failure, put right.
    ({f'streaming_reload_failures_total{{{S},what="certificates"}}': "0x9 1x50"}, 25, set()),
    ({f'streaming_auth_refused_total{{{S},reason="wrong_token"}}': "0+60x60"}, 20, {"StreamingCallersRefused"}),
    ({f'streaming_auth_refused_total{{{S},reason="wrong_token"}}': "0+1x60"}, 20, set()),
    ({f"milvus_cdc_replicate_lag{{{R}}}": "61000x60"}, 20, {"StreamingReplicationBehind"}),
    ({f"milvus_cdc_replicate_lag{{{R}}}": "59000x60"}, 20, set()),
    ({f"woodpecker_unsealed_age_seconds{{{C}}}": "30x60", f"woodpecker_logstore_writable{{{L}}}": "1x60"}, 20, set()),
]


@check("V32", "promtool: the rules parse, and each alert fires when it should and only then")
def promtool():
    binary = tools.promtool()
    groups = rules()
    names = [rule["alert"] for group in groups for rule in group["rules"]]
    tests = []
    for given, minute, firing in SITUATIONS:
        tests.append({
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in (WELL | given).items()],
            "promql_expr_test": [{
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)],
            }],
        })  # fmt: skip
    assert set(names) == set().union(*(firing for _, _, firing in SITUATIONS)), "an alert without a test"
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        (scratch / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
        (scratch / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
        for command in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
            done = subprocess.run([binary, *command], cwd=scratch, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


TOKENS = {"auth": {"enabled": True, "existingSecret": "tokens"}, "tls": {"enabled": True, "existingSecret": "tls"}}


def notes(values):
    return render.installed(values)[1]


# Where Milvus is told of what is not there by default.
OWN_PLACE = {
    "etcd": {"rootPath": "blue", "endpoints": ["a:2379", "b:2379"]},
    "config": {"rootCoord": {"dmlChannelNum": 7}, "msgChannel": {"chanNamePrefix": {"cluster": "blue"}}},
}


def told(text):
    """The values for Milvus' chart in the notes."""
    return yaml.safe_load(text[text.index("  # milvus-values.yaml") : text.index("Milvus' mixCoord")])


@check("R40", "the notes give Milvus the settings the processes have, and warn of what keeps nothing")
def milvus_settings():
    values = render.merged(render.PROD, {"preset": "dev"}, OWN_PLACE)
    text = notes(values)
    given = told(text)
    equal((given["streaming"]["enabled"], given["pulsarv3"]["enabled"], given["woodpecker"]["enabled"]), (False, False, True))
    equal(given["externalEtcd"]["endpoints"], ["a:2379", "b:2379"])
    ours, milvus = render.configuration(render.template(values), "coord"), yaml.safe_load(given["extraConfigFiles"]["user.yaml"])
    equal(milvus["etcd"], {key: ours["etcd"][key] for key in ("rootPath", "metaSubPath")})
    equal(milvus["rootCoord"]["dmlChannelNum"], ours["rootCoord"]["dmlChannelNum"])
    equal(milvus["msgChannel"]["chanNamePrefix"]["cluster"], "blue")
    equal(milvus["mq"]["type"], "woodpecker")
    assert "WARNING" not in text
    warned = notes({"etcd": {"bundled": {"persistence": {"enabled": False}}}, "node": {"replicas": 1}})
    equal(warned.count("WARNING"), 3, "warnings")
    monitored = {"metrics": {"serviceMonitor": {"enabled": True}}}
    peers = {"clients": [{"podSelector": {}}], "monitoring": [{"podSelector": {}}]}
    nobody = ["networkPolicy.clients names nobody", "networkPolicy.monitoring names nobody"]
    for policy, wanted in [({}, nobody), (peers, [])]:
        text = notes(render.merged(render.PROD, monitored, {"networkPolicy": {"enabled": True} | policy}))
        equal([words for words in nobody if words in text], wanted, f"notes with networkPolicy {policy}")
    for values, wanted in [({}, ["no network policy"]), ({"networkPolicy": {"enabled": True}}, []), (TOKENS, None)]:
        text = notes(render.merged(render.PROD, values))
        equal("auth.enabled is false" in text, wanted is not None, f"production with {values}")
        equal([words for words in ["no network policy"] if words in text], wanted or [], f"production with {values}")


@check("R47", "Milvus' own chart, given the settings in the notes: our etcd, a log of the kind woodpecker, no streaming node, no message queue of its own")
def milvus_chart():
    chart = tools.milvus_chart()
    done = render.run_helm(render.DEFAULT, "template", "my", chart, values=told(notes(render.merged(render.PROD, {"preset": "dev"}, OWN_PLACE))))
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    files = next(item["data"] for item in objects if item["kind"] == "ConfigMap" and "default.yaml" in item.get("data", {}))
    # Milvus reads one after the other.
    read = render.merged(*(yaml.safe_load(files[name]) or {} for name in ("default.yaml", "user.yaml")))
    equal((read["etcd"]["endpoints"], read["etcd"]["rootPath"], read["mq"]["type"], read["rootCoord"]["dmlChannelNum"]), (["a:2379", "b:2379"], "blue", "woodpecker", 7))
    equal(read["msgChannel"]["chanNamePrefix"]["cluster"], "blue")
    workloads = {item["metadata"]["name"] for item in objects if item["kind"] in ("Deployment", "StatefulSet")}
    unwanted = {name for name in workloads for what in ("streamingnode", "woodpecker", "pulsar", "kafka", "etcd") if what in name}
    assert workloads and not unwanted, f"{sorted(unwanted)} of {sorted(workloads)}"
