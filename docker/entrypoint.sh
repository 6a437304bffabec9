#!/usr/bin/env bash
# What `docker run saferule ...` starts: prepares the user, the caches and the artifacts folder, then runs the command.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
artifacts="$root/artifacts"
shipped="${SAFERULE_SHIPPED:-/opt/saferule/artifacts}"    # the data and results that come with the image

usage() {
    cat <<'TEXT'
saferule: Safe-RULE, safe reinforcement unlearning. What can be run:

  docker run --gpus all -v "$PWD/artifacts:/workspace/artifacts" saferule ./run_all.sh [--profile smoke|cpu|paper]
  docker run saferule make test
  docker run --gpus all saferule saferule doctor          what works on this machine, and what to do
  docker run saferule saferule --help                     every command of the project
  docker run -e SAFERULE_LAB_TOKEN -p 127.0.0.1:8888:8888 -v "$PWD/artifacts:/workspace/artifacts" saferule lab
  docker run -it saferule bash

Without a GPU leave --gpus out. Results belong to the owner of the mounted folder; --user works, too, and so do
--network none (smoke, cpu) and --read-only --tmpfs /tmp. See docs/container.md.
TEXT
}

fail() { printf 'saferule: %s\n' "$1" >&2 && exit "${2:-1}"; }

# Is the path, or a folder above it other than /, mounted from outside?
mounted() {
    local point
    while read -r _ _ _ _ point _; do
        if [[ "$point" != / && "$1/" == "$point"/* ]]; then return 0; fi
    done </proc/self/mountinfo
    return 1
}

writable() {
    local probe
    probe="$(mktemp -p "$1" .tmp-XXXXXX 2>/dev/null)" && rm -f -- "$probe"
}

# The folder of results: mounted, written by its owner, writable, and with the data in it.
prepare_artifacts() {
    local owner part draft name
    if ! mounted "$artifacts" && [[ -z "${SAFERULE_DISCARD:-}" ]]; then
        fail "nothing is mounted at $artifacts, so the results would be lost with the container: add \
-v \"\$PWD/artifacts:$artifacts\", or -e SAFERULE_DISCARD=1 if that is what you want."
    fi
    owner="$(stat -c '%u:%g' -- "$artifacts")"
    if [[ "$(id -u)" == 0 && "$owner" != 0:* ]] && setpriv --reuid="${owner%:*}" --clear-groups true 2>/dev/null; then
        exec setpriv --reuid="${owner%:*}" --regid="${owner#*:}" --clear-groups -- "$0" "$@"
    fi
    writable "$artifacts" || fail "$artifacts cannot be written by user $(id -u) (it belongs to $owner, mode $(stat \
        -c %A -- "$artifacts")): mount it without :ro, and add --user $owner or chown it to that user."
    for part in "$shipped"/*; do
        name="${part##*/}"
        if [[ -e "$part" && ! -e "$artifacts/$name" ]]; then
            printf 'saferule: copying artifacts/%s, which comes with the image\n' "$name" >&2
            draft="$(mktemp -d -p "$artifacts" .tmp-XXXXXX)"
            cp -r -- "$part" "$draft"
            mv -T -- "$draft/$name" "$artifacts/$name" || [[ -e "$artifacts/$name" ]]    # another container was first
            rm -rf -- "$draft"
        fi
    done
}

# A home and a name for a user that the image does not know, or whose home cannot be written (--user, --read-only).
prepare_home() {
    if [[ ! -d "${HOME:-}" || "${HOME:-/}" == / ]] || ! writable "$HOME"; then
        HOME="${TMPDIR:-/tmp}/saferule-home-$(id -u)"
        export HOME XDG_CACHE_HOME="$HOME/.cache"    # Mesa would take the home of the passwd file
        mkdir -p -- "$HOME" 2>/dev/null || fail "${TMPDIR:-/tmp} cannot be written: add --tmpfs /tmp."
    fi
    if ! id -un >/dev/null 2>&1; then export USER=saferule LOGNAME=saferule; fi
}

lab() {
    local token="${SAFERULE_LAB_TOKEN:-}"
    [[ -n "${token//[[:space:]]/}" ]] || fail "lab: SAFERULE_LAB_TOKEN is empty, and JupyterLab runs whatever its \
visitors type: choose a secret, such as export SAFERULE_LAB_TOKEN=\$(openssl rand -hex 16), and add \
-e SAFERULE_LAB_TOKEN." 2
    prepare_artifacts lab "$@"
    prepare_home
    export JUPYTER_TOKEN="$token"
    # All interfaces of the container; -p 127.0.0.1:8888:8888 decides who reaches it.
    exec jupyter lab --no-browser --allow-root --ip=0.0.0.0 --port=8888 --ServerApp.root_dir="$root" "$@"
}

main() {
    local arguments=" $* "
    cd -- "$root"
    case "$1" in
        help | -h | --help) usage && exit ;;
        -*) fail "$1 is no option of the image, expected a command such as ./run_all.sh $1 (docker's own options come \
before the image's name); 'docker run saferule' lists what can be run." 2 ;;
        lab) shift && lab "$@" ;;
        jupyter*) if [[ "$arguments" =~ token=(\'\'|\"\")?[[:space:]] ]]; then
            fail "$1: an empty token lets everyone in: leave it out, or use lab with SAFERULE_LAB_TOKEN." 2
        fi ;;
    esac
    command -v -- "$1" >/dev/null ||
        fail "$1 is no command of the image; 'docker run saferule' lists what can be run." 127
    if [[ "$arguments" =~ [\ /]run_all\.sh\ |\ saferule\ run\ |\ make\ smoke\  && ! "$arguments" =~ \ (-h|--help)\  ]]; then
        prepare_artifacts "$@"
    fi
    prepare_home
    exec "$@"
}

if (($# == 0)); then set -- help; fi
main "$@"
