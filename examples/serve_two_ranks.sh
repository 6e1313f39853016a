#!/usr/bin/env bash
# Serve a model by two ranks, each with its slice of the heads: on two GPUs, or two halves of a CPU.
#
#     examples/serve_two_ranks.sh MODEL [flags of vllm serve]
set -euo pipefail
model=${1:?name the model: an id or a folder}
shift
if ! command -v nvidia-smi >/dev/null; then
    mapfile -t cores < <(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0)), sep="\n")')
    half=$((${#cores[@]} / 2))
    ((half > 0)) || { echo "two ranks need two cores, here is one" >&2; exit 1; }
    join() { local IFS=,; echo "$*"; }
    halves="$(join "${cores[@]::half}")|$(join "${cores[@]:half}")"
    export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-$halves}"
fi
exec vllm serve "$model" --tensor-parallel-size 2 --attention-backend CUSTOM "$@"
