"""The image, the compose file, the documentation."""

import contextlib
import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile

import jsonschema
import yaml

from chart import registry, render, tools
from chart.checks.process import BUSY, free_ports, status, until
from chart.registry import Skip, check, equal

DOCKERFILE = tools.ROOT / "Dockerfile"
COMPOSE = tools.ROOT / "docker-compose.yml"


@check("I1", "hadolint passes; the image is pinned, multi-stage, without a shell, and runs as a number")
def dockerfile():
    done = subprocess.run(["hadolint", "--failure-threshold", "info", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = DOCKERFILE.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert "USER 65532:65532" in final and "RUN" not in final and 'ENTRYPOINT ["/usr/local/bin/streaming"]' in final
    for base in re.findall(r"^ARG \w+_IMAGE=(.*)$", text, re.M):
        assert ":" in base and not base.endswith(":latest"), base
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', final))
    equal({name: labels.get(name) for name in ("version", "revision", "source")}, {"version": "${VERSION}", "revision": "${REVISION}", "source": "${SOURCE}"})
    version = re.search(r'^version = "(.*)"$', (tools.ROOT / "Cargo.toml").read_text(), re.M)[1]
    chart = yaml.safe_load((render.CHART / "Chart.yaml").read_text())["appVersion"]
    equal((re.search(r"^ARG VERSION=(.*)$", final, re.M)[1], chart), (version, version), "versions of the label and of the chart's image")
    needed = re.search(r'^rust-version = "(.*)"$', (tools.ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert f"rust:{needed}-" in text, f"the build needs Rust {needed}"


def sent(path):
    """Whether a path is in the build context: the last line that speaks of it, or of a directory above it, decides."""
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    decided = True
    for line in filter(None, (tools.ROOT / ".dockerignore").read_text().splitlines()):
        if any(fnmatch.fnmatch(each, line.removeprefix("!")) for each in above):
            decided = line.startswith("!")
    return decided


@check("I2", "the build context holds every crate of the workspace")
def context():
    cargo = (tools.ROOT / "Cargo.toml").read_text()
    members = re.findall(r'"([^"]+)"', re.search(r"^members = \[(.*?)\]", cargo, re.M | re.S)[1])
    for path in ["Cargo.toml", "Cargo.lock", ".cargo/config.toml", "src/main.rs", *(f"{member}/Cargo.toml" for member in members if member != ".")]:
        assert (tools.ROOT / path).exists() and sent(path), f"{path} is not in the build context"
    for path in ["target/debug/streaming", "data/x", ".git/config", "tests/fuzz/Cargo.toml"]:
        assert not sent(path), f"{path} is in the build context"


def compose():
    return yaml.safe_load(COMPOSE.read_text())


@check("V3", "docker-compose.yml is valid by the compose specification's schema")
def compose_schema():
    schema = tools.compose_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)

    def plain(item):
        return {key: value for key, value in item.items() if not key.startswith("x-")} if isinstance(item, dict) else item

    errors = list(validator.iter_errors(plain(compose())))
    assert not errors, f"{errors[0].json_path}: {errors[0].message}"


@check("I3", "compose starts what the chart starts: the same images, our processes locked down, keys the binary knows")
def compose_agrees():
    services = compose()["services"]
    values = yaml.safe_load((render.CHART / "values.yaml").read_text())
    equal(services["etcd"]["image"], values["etcd"]["bundled"]["image"])
    equal(services["s3"]["image"], values["objectStorage"]["bundled"]["image"])
    version = yaml.safe_load((render.CHART / "Chart.yaml").read_text())["appVersion"]
    for name in ("coord", "node-1", "node-2", "cli"):
        service = services[name]
        equal((service["user"], service["read_only"], service["cap_drop"]), ("65532:65532", True, ["ALL"]), name)
        equal(service["image"], f"streaming:{version}", name)
    for name in ("coord", "node-1", "node-2"):
        role = services[name]["command"][0]
        variables = {key: str(value) for key, value in services[name]["environment"].items()}
        done = subprocess.run([tools.streaming(), role, "--dump-config"], env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        equal(yaml.safe_load(done.stdout)["etcd"]["endpoints"], ["etcd:2379"])
        kind, program, *words = services[name]["healthcheck"]["test"]
        equal((kind, program), ("CMD", "/usr/local/bin/streaming"), name)
        # Nobody is there: it must say so, not that it does not understand.
        done = subprocess.run([tools.streaming(), *words, "--admin", "http://127.0.0.1:1"], capture_output=True, text=True)
        assert done.returncode == 1 and "unreachable" in done.stdout, f"{name}: {done.stdout}{done.stderr}"


@check("V4", "yamllint: the values files")
def lint():
    rules = "{extends: relaxed, rules: {line-length: {max: 300}, key-duplicates: enable, truthy: enable}}"
    files = [render.CHART / name for name in ("Chart.yaml", "values.yaml", "values-dev.yaml", "values-prod.yaml", "values-quorum.yaml", "rules.yaml")]
    done = subprocess.run(["yamllint", "-d", rules, *files, *render.SCENARIOS, COMPOSE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


GUIDE = tools.ROOT / "docs" / "operate" / "helm.md"


@check("R42", "every helm command in the operator's guide renders, with the values files it shows")
def guide():
    text = GUIDE.read_text()
    blocks = re.findall(r"```(\w+)(?: title=(\S+))?\n(.*?)```", text, re.S)
    commands = 0
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: body for language, name, body in blocks if language == "yaml" and name}
        for name, body in files.items():
            with open(f"{scratch}/{name}", "w") as file:
                file.write(body)
        for language, _, body in blocks:
            if language != "sh":
                continue
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] not in (["helm", "install"], ["helm", "upgrade"]):
                    continue
                commands += 1
                rest = [f"{scratch}/{word}" if word in files else word for word in words[2:]]
                rest = [word.replace("helm/streaming", str(render.CHART), 1) if word.startswith("helm/streaming") else word for word in rest]
                rest = [word for word in rest if word not in ("--install", "--create-namespace", "--wait", "--reset-then-reuse-values")]
                done = render.run_helm(render.DEFAULT, "template", *rest)
                assert done.returncode == 0, f"{line}: {done.stderr}"
    assert commands >= 4, f"only {commands} commands found in {GUIDE.name}"


@check("I6", "every check is in the documentation, and no other is")
def listed():
    page = (GUIDE.parent / "helm-checks.md").read_text()
    equal(sorted(set(re.findall(r"\b[RVPIK][0-9]+\b", page))), sorted({each.id for each in registry.CHECKS}))


# What the base image brings besides files that the binary does not need: `cc` of distroless.
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
INCLUDE = re.compile(r'include_(?:str|bytes|proto)!\(\s*(?:concat!\(env!\("CARGO_MANIFEST_DIR"\),\s*)?"([^"]+)"')


@check("I4", "cargo accepts the build context as it is sent: every member and every included file is in it, the lock is up to date")
def buildable():
    if not shutil.which("cargo"):
        raise Skip("cargo is not installed")
    files = subprocess.run(["git", "ls-files"], cwd=tools.ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    with tempfile.TemporaryDirectory() as scratch:
        for file in filter(None, files):
            if sent(file):
                (pathlib.Path(scratch) / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tools.ROOT / file, pathlib.Path(scratch) / file)
        words = ["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        binaries = [target["name"] for package in json.loads(done.stdout)["packages"] for target in package["targets"] if target["kind"] == ["bin"]]
        assert "streaming" in binaries, f"no such binary: {binaries}"
        for source in pathlib.Path(scratch).rglob("*.rs"):
            # What only tests include need not be there.
            text = source.read_text().split("#[cfg(test)]\nmod tests {")[0]
            if "tests" in source.parts or source.name == "tests.rs":
                continue
            for path in INCLUDE.findall(text):
                assert (source.parent / path).exists(), f"{source.relative_to(scratch)} includes {path}, which is not in the build context"


def libraries(binary):
    """{name: path} of what the dynamic linker loads, and itself."""
    done = subprocess.run(["ldd", binary], capture_output=True, text=True)
    if done.returncode:
        return {}
    found = dict(re.findall(r"^\s*(\S+) => (/\S+)", done.stdout, re.M))
    return found | {pathlib.Path(path).name: path for path in re.findall(r"^\s*(/\S+)", done.stdout, re.M)}


@check("I5", "the binary with its libraries and nothing else, on a read-only root, as 65532 and without capabilities, as PID 1: serves, and ends with 0 on SIGTERM")
def alone():
    if os.geteuid() or not shutil.which("unshare"):
        raise Skip("needs root and unshare, to make a container's namespaces")
    needed = libraries(tools.streaming())
    linker = {name for name in needed if name.startswith("ld-linux")}
    assert set(needed) - linker <= LIBRARIES, f"the base image does not bring {sorted(set(needed) - linker - LIBRARIES)}"
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Another user enters it.
        scratch.chmod(0o755)
        root = scratch / "root"
        for path in ("usr/local/bin", "tmp", "data", "proc"):
            (root / path).mkdir(parents=True)
        for path in needed.values():
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path[1:])
        shutil.copy(tools.streaming(), root / "usr/local/bin/streaming")
        (root / "usr/local/bin/streaming").chmod(0o555)
        coord, node, admin = free_ports(3)
        settings = [f"rootCoord.port={coord}", f"streamingNode.port={node}", f"admin.port={admin}", "rootCoord.dmlChannelNum=1"]
        role = ["/usr/local/bin/streaming", "standalone", "--data", "/data", *(word for setting in settings for word in ("--set", setting))]
        mounts = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && mount -t tmpfs -o mode=0777 t "$1/tmp" && mount -t tmpfs -o mode=0777 t "$1/data"'
        entered = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc=/proc", f"--root={root}", "--setuid=65532", "--setgid=65532", *role]
        words = ["setpriv", "--no-new-privs", "--clear-groups", "unshare", "--mount", "bash", "-c", mounts + ' && shift && exec "$@"', "bash", root, *entered]
        log = stack.enter_context(open(scratch / "log", "w+"))
        outer = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, env={})
        stack.callback(outer.wait)
        stack.callback(outer.kill)
        told = lambda: (scratch / "log").read_text()[-2000:]  # noqa: E731

        def ready():
            assert outer.poll() is None, f"exit {outer.poll()}: {told()}"
            return status(f"http://127.0.0.1:{admin}/readyz") == 200

        until(ready, BUSY, "ready")
        children = pathlib.Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        equal(len(children), 1, "processes")
        inside = pathlib.Path("/proc", children[0])
        state = dict(line.split(":\t", 1) for line in (inside / "status").read_text().splitlines() if ":\t" in line)
        equal((state["Uid"].split()[1], state["Gid"].split()[1], state["NSpid"].split()[-1]), ("65532", "65532", "1"))
        equal((int(state["CapEff"], 16), int(state["CapPrm"], 16), state["NoNewPrivs"]), (0, 0, "1"), "capabilities")
        writable = [line.split()[1] for line in (inside / "mounts").read_text().splitlines() if "rw" in line.split()[3].split(",") and line.split()[2] != "proc"]
        equal(sorted(writable), ["/data", "/tmp"], "what can be written")
        address = ["--coordinator", f"127.0.0.1:{coord}"]
        done = subprocess.run([tools.streaming(), "produce", *address], input="one\n", capture_output=True, text=True, timeout=60)
        equal(done.returncode, 0, done.stderr + told())
        os.kill(int(children[0]), signal.SIGTERM)
        equal(outer.wait(timeout=60), 0, f"exit code after SIGTERM; {told()}")
