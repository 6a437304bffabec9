#!/usr/bin/env bash
# Installs what is needed and runs the notebooks in order, from data and attack to the tables.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: ./run_all.sh [--profile smoke|cpu|paper] [choices] [--help]

  --profile smoke   (default) one task, tiny steps, every stage: minutes on 2 CPU cores
  --profile cpu     reduced steps and widths, committed local datasets, no GPU needed
  --profile paper   the paper's own settings: one GPU; starts with `saferule doctor`

Choices, each with one or more values; without them all of the profile:
  --tasks CarCircle ...   --backbones cpq ...   --attacks max_cost ...   --ratios 0.15 ...   --replicates 0 1 ...
  --notebooks attack ...  --set episodes=50 ...
  --runs-only (makes the runs, executes no notebook)   --only-stored (makes no run, shows what is stored)
  --dry-run (says what would run, with time and disk)
  --ray ADDRESS           makes the runs on a Ray cluster (docs/cluster.md); --ray-gpus 0.25: with so much of a GPU each

Makes .venv from requirements.lock if there is none (another place: SAFERULE_VENV=/path), then says which device is
used. Results are in artifacts/<profile>/. Finished work is kept: a second run trains nothing again, an interrupted one
continues.
TEXT
}

bad_usage() {
    printf 'run_all.sh: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

profile=smoke
choices=()
while (($#)); do
    option="${1%%=*}"
    if [[ "$1" == *=* ]]; then set -- "$option" "${1#*=}" "${@:2}"; fi
    case "$option" in
        -h | --help)
            usage
            exit 0
            ;;
        --profile)
            (($# > 1)) || bad_usage "--profile needs a value"
            profile="$2"
            shift 2
            ;;
        --ray | --ray-gpus)
            (($# > 1)) || bad_usage "$1 needs a value"
            choices+=("$1" "$2")
            shift 2
            ;;
        --runs-only | --only-stored | --dry-run)
            choices+=("$1")
            shift
            ;;
        --tasks | --backbones | --attacks | --ratios | --replicates | --notebooks | --set)
            if (($# < 2)) || [[ "$2" == --* ]]; then bad_usage "$option needs a value"; fi
            shift
            while (($#)) && [[ "$1" != --* ]]; do
                choices+=("$option" "$1")
                shift
            done
            ;;
        *) bad_usage "unknown option: $1" ;;
    esac
done
case "$profile" in
    smoke | cpu | paper) ;;
    *) bad_usage "unknown profile: $profile" ;;
esac

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
venv="$(realpath -m -- "${SAFERULE_VENV:-$root/.venv}")"
for folder in "$root/artifacts" "$root/artifacts/$profile"; do
    if [[ -e "$folder" && ! -w "$folder" ]]; then
        printf 'run_all.sh: %s cannot be written by user %s: chown it, or run as its owner %s (in a container --user)\n' \
            "$folder" "$(id -u)" "$(stat -c '%u:%g' -- "$folder")" >&2
        exit 1
    fi
done
bash "$root/install.sh"
unset PYTHONHOME PYTHONPATH    # they would put other packages before those of the environment

cd -- "$root"
if [[ "$profile" == paper ]]; then "$venv/bin/saferule" doctor; fi
# In the background, so that a signal to this script alone (a scheduler's, `docker stop`) reaches the run at once.
"$venv/bin/saferule" run --profile "$profile" "${choices[@]}" & run=$!
trap 'kill -TERM "$run"; wait "$run" || :; exit 143' TERM
trap 'kill -TERM "$run"; wait "$run" || :; exit 130' INT    # which a job in the background does not hear itself
wait "$run"
trap - TERM INT
if [[ " ${choices[*]} " =~ " --runs-only " || " ${choices[*]} " =~ " --dry-run " ]]; then exit; fi

# Tables and pages of the other profiles that have results, from their stored episodes: what the repository comes with.
for other in smoke cpu paper; do
    if [[ "$other" != "$profile" && -d "artifacts/$other/runs/evaluation" ]]; then
        "$venv/bin/saferule" report --profile "$other"
    fi
done
printf '\nOpen in a browser, no server needed:\n'
printf '    %s\n' "$root"/artifacts/*/report/index.html
