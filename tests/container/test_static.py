"""The container's files as files: what can be checked without building the image (build_and_run.sh builds it)."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("install.sh", "run_all.sh", ".ci/run", "docker/entrypoint.sh", "tests/container/build_and_run.sh")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def instructions() -> list[tuple[str, str]]:
    """(keyword, arguments) of the Dockerfile, comments dropped, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined if line.strip()]


def of(keyword: str) -> list[str]:
    return [arguments for word, arguments in instructions() if word == keyword]


def ignored(path: str) -> bool:
    """Does .dockerignore leave this path, or a folder above it, out? (Without negations, which are not used.)"""
    lines = [line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    patterns = [line.removeprefix("**/") if line.startswith("**/") else f"/{line}" for line in lines]
    whole = PurePosixPath("/", path)
    return any(place.match(pattern) for place in (whole, *whole.parents[:-1]) for pattern in patterns)


def test_base_image_is_an_exact_python_of_the_project_and_a_build_argument():
    first = instructions()[0]
    assert first[0] == "ARG"
    assert re.fullmatch(r"BASE_IMAGE=python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", first[1])
    assert {arguments.split()[0] for arguments in of("FROM")} == {"${BASE_IMAGE}"}


def test_every_copied_file_exists():
    stages = {arguments.split(" AS ")[1] for arguments in of("FROM") if " AS " in arguments}
    assert of("COPY")
    for arguments in of("COPY"):
        *sources, _ = arguments.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages
            continue
        for source in sources:
            assert (ROOT / source).exists() and (source == "." or not ignored(source)), source


def test_both_locks_are_installed_by_install_sh_and_nothing_else_installs_python_packages():
    words = [word for word, _ in instructions()]
    locks = next(i for i, (word, a) in enumerate(instructions()) if word == "COPY" and "requirements.lock" in a)
    assert "requirements-cuda.lock" in instructions()[locks][1] and "install.sh" in instructions()[locks][1]
    assert instructions()[locks + 1] == ("RUN", "PIP_NO_CACHE_DIR=1 ./install.sh --lock-only")
    assert "--from=checkout /checkout ./" in of("COPY")[-1] and words.index("LABEL") > locks  # code after the packages
    installs = re.compile(r"\b(pip3?|uv|conda|mamba|pipx|poetry)\s+(install|add|sync)|\bpython3?-(?!config)\w+")
    for name in ("Dockerfile", "docker/entrypoint.sh", "compose.yaml"):
        assert not installs.search((ROOT / name).read_text()), name
    script = (ROOT / "install.sh").read_text()
    assert re.findall(r"^ *pip_install (.*)$", script, re.MULTILINE) == [
        '"$(grep \'^setuptools==\' -- "$lock")"',
        '-r "$lock"',
        '-r "$root/requirements-cuda.lock"',
        '-e "$root"',
    ]
    assert script.count("pip install") == 1 and "--no-deps --no-build-isolation" in script


def test_the_rules_of_the_dockerfile_that_matter():
    """Those of hadolint that apply here, and our own: no volume, which would hide a missing mount."""
    words = {word for word, _ in instructions()}
    assert words <= {"ARG", "FROM", "COPY", "RUN", "SHELL", "ENV", "WORKDIR", "LABEL", "ENTRYPOINT", "CMD"}
    assert words.isdisjoint({"ADD", "VOLUME", "HEALTHCHECK", "MAINTAINER"})
    (apt,) = (a for a in of("RUN") if "apt-get" in a)
    assert "update" in apt and "install -y --no-install-recommends" in apt and "rm -rf /var/lib/apt/lists/*" in apt
    assert "/usr/local/share/saferule/apt-packages.tsv" in apt and {"libegl1", "libosmesa6"} <= set(apt.split())
    assert of("SHELL") == ['["/bin/bash", "-o", "pipefail", "-c"]'] and all(a.startswith("/") for a in of("WORKDIR"))
    assert of("ENTRYPOINT")[0].startswith("[") and of("CMD") == ['["help"]']
    assert not any(re.search(r"\b(sudo|ssh|cd|curl|wget)\b", a) for a in of("RUN"))
    environment = " ".join(of("ENV"))
    assert "NVIDIA_VISIBLE_DEVICES=all" in environment
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics" in environment
    assert not re.search(r"(?i)token|secret|password", " ".join(of("ENV") + of("ARG")))


def test_labels_agree_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(part.split("=", 1) for part in shlex.split(of("LABEL")[0]))
    name = "org.opencontainers.image."
    assert labels[name + "version"] == project["version"] and labels[name + "licenses"] == project["license"]
    assert labels[name + "source"] == "${SOURCE}" and "SOURCE=unknown" in of("ARG")


def test_the_build_context_has_what_git_has_and_neither_history_nor_environment():
    for path in (".git", ".venv/bin/python", "saferule.egg-info/PKG-INFO", "artifacts/smoke/tables/table1.csv"):
        assert ignored(path), path
    assert ignored("saferule/agents/__pycache__/cpq.cpython-311.pyc")
    listed = subprocess.run("git ls-files", shell=True, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, or no git")
    assert [path for path in listed.stdout.splitlines() if ignored(path)] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_parse_and_are_executable(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize(("tool", "files"), [("hadolint", ["Dockerfile"]), ("shellcheck", list(SCRIPTS))])
def test_linters_where_they_are_installed(tool, files):
    if not shutil.which(tool):
        pytest.skip(f"no {tool} on PATH; the rules that matter are tested above, and .ci/run fetches hadolint")
    done = subprocess.run([tool, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_has_the_four_services_and_they_write_to_the_artifacts():
    assert set(COMPOSE) == {"smoke", "cpu", "paper", "lab"}
    for name, service in COMPOSE.items():
        assert "./artifacts:/workspace/artifacts" in service["volumes"] and service["image"] == "saferule"
        assert ("healthcheck" in service) == ("ports" in service) == (name == "lab")
    for name in ("smoke", "cpu", "paper"):
        assert COMPOSE[name]["command"] == ["./run_all.sh", "--profile", name]
    assert all(COMPOSE[name]["network_mode"] == "none" for name in ("smoke", "cpu"))
    (gpu,) = COMPOSE["paper"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["driver"] == "nvidia" and "gpu" in gpu["capabilities"]


def test_the_lab_is_on_this_host_alone_and_its_token_is_never_empty():
    lab = COMPOSE["lab"]
    assert lab["command"] == ["lab"]  # the entrypoint's, which refuses an empty token (test_entrypoint.py)
    assert lab["ports"] == ["127.0.0.1:8888:8888"]
    assert lab["environment"] == ["SAFERULE_LAB_TOKEN"]  # the caller's, or none: no value and no default here
    assert not re.search(r"(?i)token\s*[=:]\s*(''|\"\"|$)", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
    assert "--ip" not in (ROOT / "compose.yaml").read_text()


def test_what_was_measured_is_committed_as_it_was_written():
    """artifacts/bench/container.md is made from container.json, by build_and_run.sh and by nothing else."""
    from facts import summary

    found = json.loads((ROOT / "artifacts" / "bench" / "container.json").read_text())
    assert (ROOT / "artifacts" / "bench" / "container.md").read_text() == summary(found)
    assert found["cuda_torch"][1] is not None and len(found["smoke"]["table1"]) > 0
    assert list(found["smoke"]["owners"]) == ["1000:1000"] and list(found["root"]["owners"]) == ["0:0"]
