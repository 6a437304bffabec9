#!/usr/bin/env bash
# Builds the image without a container registry and runs tests, smoke and refusals in it; writes what was measured to
# artifacts/bench/container.json and container.md. Needs root, Debian's docker.io and debootstrap (or a running docker)
# and about 20 GB. The containers have no network.
#
#   tests/container/build_and_run.sh [--keep] [STEP ...]     all: build errors lab smoke user root test cuda
#
# What belongs to this machine is passed on: its certificates, its proxy, the torch wheel in pip's find-links (the cuda
# step does without). The base is Debian bookworm from debootstrap, in place of the Dockerfile's own.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)"
keep=
if [[ "${1:-}" == --keep ]]; then keep=yes && shift; fi
steps=" ${*:-build errors lab smoke user root test cuda} "
work="${SAFERULE_WORK:-$(mktemp -d --tmpdir saferule-image-XXXXXX)}"
mkdir -p -- "$work"
facts="$work/facts.jsonl"
base=localhost/saferule-base image=localhost/saferule daemon=
export DOCKER_BUILDKIT="${DOCKER_BUILDKIT:-0}"    # the classic builder needs no plugin

say() { printf '+ %s\n' "$*"; }
die() { printf 'build_and_run.sh: %s\n' "$*" >&2 && exit 1; }
wanted() { [[ "$steps" == *" $1 "* ]]; }
# json WORD ...: a list of strings.
json() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"; }
fact() { python3 -c 'import json, sys; print(json.dumps({sys.argv[1]: json.loads(sys.argv[2])}))' "$@" >>"$facts"; }

# timed NAME COMMAND...: runs it into a log, records the seconds, shows the log's end when it fails.
timed() {
    local name="$1" started=$SECONDS
    shift
    say "$name: $*"
    "$@" >"$work/$name.log" 2>&1 &    # in the background, because `set -e` does not hold before a ||
    wait "$!" || { tail -n 30 -- "$work/$name.log" >&2 && die "$name failed: $work/$name.log"; }
    fact "${name}_seconds" "$((SECONDS - started))"
    say "$name: done in $((SECONDS - started)) s"
}

cleanup() {
    if [[ -n "$daemon" ]]; then
        kill "$daemon"
        wait "$daemon" || true
        umount "$work"/exec/netns/* 2>/dev/null || true    # which dockerd leaves
    fi
    if [[ -z "$keep" ]]; then rm -rf -- "$work"; else say "kept: $work"; fi
}
trap cleanup EXIT

# A docker daemon of our own unless one answers: no bridge, no firewall rules, its data in the work folder.
start_docker() {
    if docker info >/dev/null 2>&1; then return; fi
    command -v dockerd >/dev/null || die "no docker daemon answers and there is no dockerd: apt-get install docker.io"
    dockerd --data-root="$work/data" --exec-root="$work/exec" --pidfile="$work/pid" -H "unix://$work/sock" \
        --iptables=false --ip-forward=false --ip-masq=false --bridge=none >"$work/dockerd.log" 2>&1 &
    daemon=$!
    export DOCKER_HOST="unix://$work/sock"
    for _ in {1..60}; do
        if docker info >/dev/null 2>&1; then return; fi
        sleep 1
    done
    tail -n 20 -- "$work/dockerd.log" >&2
    die "dockerd did not start"
}

# The folders in which pip looks for wheels, from its configuration and environment.
find_links() { pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'/\1/p" | tr ' ' '\n' | sort -u; }

make_base() {
    local rootfs="$work/rootfs" mirror
    # shellcheck disable=SC2016  # apt-get expands it
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$' || true)"
    debootstrap --variant=minbase --include=python3.11,python3,python3-venv,ca-certificates \
        bookworm "$rootfs" ${mirror:+"$mirror"}
    rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/*
    mkdir -p "$rootfs/usr/local/share/ca-certificates"
    cp /usr/local/share/ca-certificates/*.crt "$rootfs/usr/local/share/ca-certificates/" 2>/dev/null || true
    chroot "$rootfs" update-ca-certificates
    tar -C "$rootfs" --numeric-owner -c . | docker import -c 'CMD ["bash"]' - "$base:plain"
    # The same with the wheel that pip finds on this machine.
    mkdir "$rootfs/wheels"
    find_links | while read -r folder; do cp "$folder"/torch-*.whl "$rootfs/wheels/" 2>/dev/null || true; done
    tar -C "$rootfs" --numeric-owner -c . | docker import -c 'CMD ["bash"]' - "$base:wheels"
    rm -rf -- "$rootfs"
}

# What is built: a copy of the checkout.
copy_checkout() {
    rm -rf -- "$work/context" && mkdir -- "$work/context"
    tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=./artifacts/smoke -c . | tar -C "$work/context" -x
}

build() {    # build TAG BASE [ARGUMENT ...]
    docker build --network host --build-arg "BASE_IMAGE=$2" \
        --build-arg "REVISION=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)" \
        --build-arg http_proxy --build-arg https_proxy --build-arg no_proxy "${@:3}" -t "$1" "$work/context"
}

# Bytes of each layer that the Dockerfile added and of the whole, and what in it is large.
describe() {
    docker history --no-trunc --human=false --format '{{.Size}}\t{{.CreatedBy}}' "$1" >"$work/history.tsv"
    docker run --rm --network none --entrypoint bash "$1" -c \
        'du -sb /opt/venv/lib/python3.11/site-packages/* | sort -rn | head -n 12; echo
         find /opt/venv -name "*.pyc" -printf "%s\n" | awk "{ sum += \$1 } END { printf \"%.0f\n\", sum }"' >"$work/large.txt"
    fact "$2_image" "$(docker image inspect "$1" | python3 "$root/tests/container/facts.py" image "$work")"
}

# run NAME ARGUMENT... -- COMMAND...: in the image, without network, niced as this script is.
run() {
    local name="$1" options=()
    shift
    while [[ "$1" != -- ]]; do options+=("$1") && shift; done
    shift
    timed "$name" docker run --rm --network none "${options[@]}" "$image" "$@"
}

folder() { mkdir -p -- "$work/$1" && chown "$2" "$work/$1" && printf '%s' "$work/$1"; }

# smoke NAME FOLDER OPTION...: ./run_all.sh into a folder; which tables came out, and who owns the files.
smoke() {
    local name="$1" where="$2"
    shift 2
    run "$name" -v "$where:/workspace/artifacts" "$@" -- ./run_all.sh
    fact "$name" "$(python3 "$root/tests/container/facts.py" smoke "$where" "$work/$name.log")"
}

# refused NAME EXIT_CODE WORDS ARGUMENT... [-- COMMAND...]: one sentence on stderr, and this exit code.
refused() {
    local name="$1" code="$2" words="$3" options=() got=0 said
    shift 3
    while (($#)) && [[ "$1" != -- ]]; do options+=("$1") && shift; done
    docker run --rm --network none "${options[@]}" "$image" "${@:2}" >"$work/out" 2>"$work/err" || got=$?
    [[ "$got" == "$code" && "$(<"$work/err")" == *"$words"* ]] ||
        die "$name: exit $got, expected $code and '$words': $(<"$work/err")"
    said="$(grep -F -m 1 -- "$words" "$work/err")"
    fact "refused_$name" "$(json "$got" "$said")"
    say "refused $name: $said"
}

errors() {
    local theirs
    theirs="$(folder theirs 4242:4242)"
    docker run --rm --network none "$image" | grep -q 'What can be run'
    refused no_mount 1 'nothing is mounted' -- ./run_all.sh
    refused unknown_option 2 'unknown option: --fast' -v "$theirs:/workspace/artifacts" -- ./run_all.sh --fast
    refused option_of_the_image 2 '--fast is no option of the image' -- --fast
    refused unknown_command 127 'trane is no command' -- trane
    refused unwritable 1 'cannot be written by user 1234' --user 1234:1234 -v "$theirs:/workspace/artifacts" -- ./run_all.sh
    refused read_only_mount 1 'mount it without :ro' -v "$theirs:/workspace/artifacts:ro" -- ./run_all.sh
    refused no_tmp 1 'add --tmpfs /tmp' --read-only -- saferule --help
    refused lab_without_token 2 'SAFERULE_LAB_TOKEN is empty' -e SAFERULE_LAB_TOKEN= -v "$theirs:/workspace/artifacts" -- lab
    refused empty_token 2 'an empty token lets everyone in' -- jupyter lab --ip=0.0.0.0 --IdentityProvider.token=
}

# JupyterLab answers with the token and refuses without.
lab() {
    local where id codes
    where="$(folder lab 1000:1000)"
    id="$(docker run -d --rm --network none --read-only --tmpfs /tmp -e SAFERULE_LAB_TOKEN=a-secret \
        -v "$where:/workspace/artifacts" "$image" lab)"
    for _ in {1..60}; do
        codes="$(docker exec "$id" python3 -c '
import urllib.request, urllib.error
def code(path):
    try: return urllib.request.urlopen("http://127.0.0.1:8888" + path, timeout=5).status
    except urllib.error.HTTPError as error: return error.code
print(code("/api/contents/notebooks"), code("/api/contents/notebooks?token=wrong"),
      code("/api/contents/notebooks?token=a-secret"))' 2>/dev/null || true)"
        if [[ -n "$codes" ]]; then break; fi
        sleep 1
    done
    docker kill "$id" >/dev/null
    [[ "$codes" == "403 403 200" ]] || die "lab: answers '$codes', expected 403 403 200"
    fact lab_without_wrong_and_right_token "[${codes// /, }]"
}

start_docker
if wanted build; then
    : >"$facts"
    fact machine "$(json "$(nproc) cores of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" \
        "docker $(docker version --format '{{.Server.Version}}')" "$(date -u +%F)")"
    copy_checkout
    timed base make_base
    timed build build "$image" "$base:wheels" --build-arg PIP_FIND_LINKS=/wheels
    describe "$image" cpu
    # A change of the code: torch must come from the cache.
    printf '\n# changed\n' >>"$work/context/saferule/__init__.py"
    timed rebuild build "$image:changed" "$base:wheels" --build-arg PIP_FIND_LINKS=/wheels
    copy_checkout
    grep -A 1 'lock-only' "$work/rebuild.log" | grep -q 'Using cache' || die "a change of the code installed torch again"
    docker rmi "$image:changed" >/dev/null
fi
if wanted errors; then errors; fi
if wanted lab; then lab; fi
if wanted smoke; then    # the command of the README into an ordinary user's empty folder, twice
    smoke smoke "$(folder results 1000:1000)"
    smoke smoke_again "$work/results"
fi
if wanted user; then    # on the finished folder, so nothing is trained again; so is the next
    smoke user "$work/results" --user 1000:1000 --read-only --tmpfs /tmp
    run doctor --user 1000:1000 --read-only --tmpfs /tmp -v "$work/results:/workspace/artifacts" -- saferule doctor
    mapfile -t lines <"$work/doctor.log"
    fact doctor "$(json "${lines[@]}")"
fi
if wanted root; then
    cp -r -- "$work/results" "$work/results-of-root"    # root's copy is root's
    smoke root "$work/results-of-root"
fi
if wanted test; then
    run tests -- make test PYTEST_ARGS="-p no:cacheprovider"
    fact tests "$(json "$(tail -n 1 -- "$work/tests.log")")"
fi
if wanted cuda; then
    timed cuda_build build "$image:cuda" "$base:plain"
    describe "$image:cuda" cuda
    fact cuda_torch "$(docker run --rm --network none "$image:cuda" python -c \
        'import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))')"
    docker run --rm --network none "$image:cuda" python -c 'import torch; assert torch.version.cuda is not None'
    image="$image:cuda" run cuda_doctor -- saferule doctor
    mapfile -t lines <"$work/cuda_doctor.log"
    fact cuda_doctor "$(json "${lines[@]}")"
fi
python3 "$root/tests/container/facts.py" write "$facts" "$root/artifacts/bench/container.json"
say "written: artifacts/bench/container.json and container.md"
