"""The image, the compose file, the documentation."""

import fnmatch
import re
import shlex
import subprocess

import jsonschema
import yaml

from chart import render, tools
from chart.registry import check, equal

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
    needed = re.search(r'^rust-version = "(.*)"$', (tools.ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert f"rust:{needed}-" in text, f"the build needs Rust {needed}"


@check("I2", "the build context holds every crate of the workspace")
def context():
    cargo = (tools.ROOT / "Cargo.toml").read_text()
    members = re.findall(r'"([^"]+)"', re.search(r"^members = \[(.*?)\]", cargo, re.M | re.S)[1])
    lines = [line for line in (tools.ROOT / ".dockerignore").read_text().splitlines() if line]

    def sent(path):
        """The last line that speaks of a path, or of a directory above it, decides."""
        parts = path.split("/")
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        decided = True
        for line in lines:
            if any(fnmatch.fnmatch(each, line.removeprefix("!")) for each in above):
                decided = line.startswith("!")
        return decided

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
    import tempfile

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
