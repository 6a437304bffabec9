#!/usr/bin/env bash
# Makes the Python environment from the lock, or does nothing if it is there and up to date (no network then).
#
#   ./install.sh                      in .venv beside this file
#   SAFERULE_VENV=/opt/venv ./install.sh      elsewhere, e.g. in a container image
#
# Records kept in the environment:
#   .saferule-made      written before anything else: this script made the environment, so it may make it anew
#   .saferule-lock      sha256 of the lock and the place, written last: a missing or other one means "not as locked"
#   .saferule-project   the same for the project itself (pyproject.toml and where the repository lies)
# An environment that this script did not make is installed into, never deleted.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$(realpath -m -- "${SAFERULE_VENV:-$root/.venv}")"
python="$venv/bin/python"
log="$venv/.saferule-install.log"

# Settings of the caller that would send packages elsewhere than into the environment.
unset PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONNOUSERSITE=1
export PIP_USE_PEP517=1    # rliable is an sdist; older pip would still run its setup.py directly

say() { printf 'install: %s\n' "$*"; }

die() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

is_311() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if is_311 "$candidate"; then
            command -v -- "$candidate"
            return
        fi
    done
    die "Python 3.11 (with its venv module) was not found on PATH: get it with your system's packages" \
        "(Debian 12: apt-get install python3.11-venv), 'uv python install 3.11', 'pyenv install 3.11' or" \
        "'conda create -n py311 python=3.11', make python3.11 callable, and run this again."
}

lock_record() {
    { cat -- "$root/requirements.lock" "$root/requirements-cuda.lock" && printf '%s\n' "$venv"; } |
        sha256sum | cut -d ' ' -f 1
}

project_record() {
    { cat -- "$root/pyproject.toml" && printf '%s\n' "$root" "$(lock_record)"; } | sha256sum | cut -d ' ' -f 1
}

# recorded NAME VALUE: is VALUE what the environment's record NAME holds?
recorded() { [[ -f "$venv/$1" && "$(<"$venv/$1")" == "$2" ]]; }

record() {
    printf '%s\n' "$2" >"$venv/$1.tmp"
    mv -f -- "$venv/$1.tmp" "$venv/$1"
}

# An empty environment to install into: a new one, or the caller's own.
prepare_venv() {
    local base
    if [[ -f "$venv/pyvenv.cfg" && ! -f "$venv/.saferule-made" ]]; then
        is_311 "$python" || die "$venv is not a Python 3.11 environment: choose another with SAFERULE_VENV."
        say "installing into the existing environment $venv"
        return
    fi
    if [[ -e "$venv" && ! -f "$venv/.saferule-made" ]] && [[ ! -d "$venv" || -n "$(ls -A -- "$venv")" ]]; then
        die "$venv exists and is no Python environment: move it away or choose another place with SAFERULE_VENV."
    fi
    base="$(find_python)"
    if [[ -f "$venv/.saferule-made" ]]; then
        say "the lock changed, the folder moved or an installation was interrupted: making $venv anew"
    else
        say "making $venv"
    fi
    rm -rf -- "$venv"
    mkdir -p -- "$venv"
    : >"$venv/.saferule-made"
    "$base" -m venv "$venv" || die "'$base -m venv' failed: see the lines above."
}

# Reads pip's output: all of it goes to the log, a line now and then to the terminal.
progress() {
    local line seen=0 total="$1"
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        case "$line" in
            Collecting\ * | Processing\ *)    # from an index, or a wheel at hand
                seen=$((seen + 1))
                if ((seen % 40 == 0)); then say "  $seen of $total packages fetched"; fi
                ;;
            Installing\ collected*) say "  unpacking them" ;;
        esac
    done
}

# install_lock FILE: exactly its packages, built (if need be) with the setuptools already installed.
install_lock() {
    local total
    total="$(grep -c '^[^#]' -- "$1")"
    say "$(basename -- "$1"): $total packages"
    "$python" -m pip install --no-deps --no-build-isolation --progress-bar off -r "$1" 2>&1 | progress "$total" || {
        tail -n 15 -- "$log" >&2
        die "pip could not install $(basename -- "$1"): the lines above are the end of $log."
    }
}

# Does the installed torch ask for CUDA packages? Its metadata tell; importing it may fail without them.
torch_needs_cuda() {
    "$python" - <<'PY'
from importlib.metadata import requires
from packaging.requirements import Requirement

needed = [r for r in map(Requirement, requires("torch") or ()) if not r.marker or r.marker.evaluate({"extra": ""})]
print("yes" if any(r.name.startswith(("nvidia-", "cuda-")) for r in needed) else "no")
PY
}

install_packages() {
    local needs_cuda
    rm -f -- "$venv/.saferule-lock" "$venv/.saferule-project"
    : >"$log"
    # setuptools first: it builds rliable and this project, so that no unpinned copy is fetched for that.
    grep '^setuptools==' -- "$root/requirements.lock" >"$venv/.saferule-setuptools.txt"
    "$python" -m pip install -q --no-deps -r "$venv/.saferule-setuptools.txt" >>"$log" 2>&1 || {
        tail -n 15 -- "$log" >&2
        die "pip could not install setuptools: no network, or no package index?"
    }
    rm -f -- "$venv/.saferule-setuptools.txt"
    install_lock "$root/requirements.lock"
    needs_cuda="$(torch_needs_cuda)"
    if [[ "$needs_cuda" == yes ]]; then install_lock "$root/requirements-cuda.lock"; fi
    say "torch $("$python" -c 'import torch; print(torch.__version__, "CUDA", torch.version.cuda)')"
    record .saferule-lock "$1"
}

install_project() {
    say "the project itself (editable) and the notebook kernel 'saferule'"
    "$python" -m pip install -q --no-deps --no-build-isolation -e "$root"
    "$python" -m ipykernel install --sys-prefix --name saferule --display-name "Python 3.11 (saferule)" >/dev/null
    record .saferule-project "$1"
}

wanted_lock="$(lock_record)"
wanted_project="$(project_record)"
if ! recorded .saferule-lock "$wanted_lock" || ! is_311 "$python"; then
    prepare_venv
    install_packages "$wanted_lock"
fi
if ! recorded .saferule-project "$wanted_project"; then
    install_project "$wanted_project"
    say "done in $SECONDS s: $venv"
fi
