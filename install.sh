#!/usr/bin/env bash
# Makes the Python environment from the lock, or does nothing if it is there and up to date (no network then).
#
#   ./install.sh                              in .venv beside this file
#   SAFERULE_VENV=/opt/venv ./install.sh      elsewhere, as in the container image
#   ./install.sh --lock-only                  without the project itself: a layer of the image that code does not change
#
# Records in the environment: .saferule-made, written first: this script made it, so it may make it anew; .saferule-lock
# and .saferule-project, written last: the sha256 of what was installed and of its place. An environment that this
# script did not make is installed into, never deleted.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$(realpath -m -- "${SAFERULE_VENV:-$root/.venv}")"
python="$venv/bin/python"
unset PYTHONHOME PYTHONPATH    # they would put other packages before those of the environment
export PYTHONNOUSERSITE=1

say() { printf 'install: %s\n' "$*"; }
die() { say "$@" >&2 && exit 1; }
recorded() { [[ -f "$venv/$1" && "$(<"$venv/$1")" == "$2" ]]; }
record() { printf '%s\n' "$2" >"$venv/$1.tmp" && mv -f -- "$venv/$1.tmp" "$venv/$1"; }
is_311() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if is_311 "$candidate"; then command -v -- "$candidate" && return; fi
    done
    die "Python 3.11 (with its venv module) was not found on PATH: get it with your system's packages" \
        "(Debian 12: apt-get install python3.11-venv), 'uv python install 3.11', 'pyenv install 3.11' or" \
        "'conda create -n py311 python=3.11', make python3.11 callable, and run this again."
}

# Of the caller's settings of pip (PIP_*, pip.conf) those that say how packages are got; no others, which could send them
# elsewhere (target, prefix, user) or forbid them (require-hashes, only-binary, a constraint).
ours() {
    local program='
import os, sys
from ast import literal_eval
wanted = "index-url extra-index-url no-index find-links trusted-host cert client-cert proxy timeout retries cache-dir".split()
told = {}
for line in sys.stdin:
    name, _, value = line.rstrip().partition("=")
    section, _, name = name.partition(".")
    if section in ("global", "install", ":env:") and name in wanted:
        told[name] = literal_eval(value)  # the environment is listed last, and counts most
print("\n".join(f"PIP_{name.replace(chr(45), chr(95)).upper()}={chr(32).join(value.split())}" for name, value in told.items()))'
    local told
    told="$("$python" -m pip config list)" || die "pip cannot read its settings, see the lines above: correct that file."
    "$python" -c "$program" <<<"$told"
}
keep_ours() {
    local told settings name
    told="$(ours)"
    mapfile -t settings <<<"$told"
    for name in "${!PIP_@}"; do unset "$name"; done
    export PIP_CONFIG_FILE=/dev/null PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    export PIP_USE_PEP517=1    # rliable is an sdist; older pip would still run its setup.py directly
    for name in "${settings[@]}"; do if [[ -n "$name" ]]; then export "${name?}"; fi; done
}

# Exactly these packages, built (if need be) with the setuptools already installed.
pip_install() {
    keep_ours
    "$python" -m pip install -q --no-deps --no-build-isolation "$@" ||
        die "pip could not install ${*: -1}: the lines above say why (no network, or no package index?)."
}

install_lock() {
    local base lock="$root/requirements.lock"
    if [[ -f "$venv/pyvenv.cfg" && ! -f "$venv/.saferule-made" ]]; then
        is_311 "$python" || die "$venv is not a Python 3.11 environment: choose another with SAFERULE_VENV."
    elif [[ -f "$venv/.saferule-made" || ! -e "$venv" || (-d "$venv" && -z "$(ls -A -- "$venv")") ]]; then
        base="$(find_python)"
        rm -rf -- "$venv" && mkdir -p -- "$venv" && : >"$venv/.saferule-made"
        "$base" -m venv "$venv" || die "'$base -m venv' failed: see the lines above."
    else
        die "$venv exists and is no Python environment: move it away or choose another place with SAFERULE_VENV."
    fi
    rm -f -- "$venv/.saferule-lock" "$venv/.saferule-project"
    say "the $(grep -c '^[^#]' -- "$lock") packages of the lock into $venv (minutes)"
    pip_install "$(grep '^setuptools==' -- "$lock")"
    pip_install -r "$lock"
    # A CUDA build of torch asks for packages that a CPU build does not; importing it may fail without them.
    if "$python" -c 'import importlib.metadata as m, sys
sys.exit(not any(r.startswith(("nvidia-", "cuda-")) for r in m.requires("torch") or ()))'; then
        say "and those of requirements-cuda.lock, which this torch asks for"
        pip_install -r "$root/requirements-cuda.lock"
    fi
    record .saferule-lock "$1"
}

[[ "${*:-}" =~ ^(--lock-only)?$ ]] || die "unknown option: $*, expected --lock-only or nothing."
[[ "${SAFERULE_VENV:-}" != "~"* ]] || die "SAFERULE_VENV=$SAFERULE_VENV: a ~ in quotes is no home folder: write \$HOME."
cd -- "$root"
lock="$({ cat requirements.lock requirements-cuda.lock && printf '%s\n' "$venv"; } | sha256sum | cut -d ' ' -f 1)"
if ! recorded .saferule-lock "$lock" || ! is_311 "$python"; then install_lock "$lock"; fi
if [[ "${1:-}" == --lock-only ]]; then exit; fi
project="$({ cat pyproject.toml && printf '%s\n' "$root" "$lock"; } | sha256sum | cut -d ' ' -f 1)"
if ! recorded .saferule-project "$project"; then
    pip_install -e "$root"
    record .saferule-project "$project"
    say "done in $SECONDS s: $venv"
fi
