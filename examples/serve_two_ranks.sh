#!/usr/bin/env bash
# Serve a model by two ranks, each with its slice of the heads: on two GPUs, or two halves of a CPU.
#
#     examples/serve_two_ranks.sh MODEL [flags of vllm serve]
set -euo pipefail
model=${1:?name the model: an id or a folder}
shift
if ! command -v nvidia-smi >/dev/null; then
    cores=$(nproc)
    ((cores > 1)) || { echo "two ranks need two cores, here is one" >&2; exit 1; }
    half=$((cores / 2))
    export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-0-$((half - 1))|$half-$((cores - 1))}"
fi
exec vllm serve "$model" --tensor-parallel-size 2 --attention-backend CUSTOM "$@"
