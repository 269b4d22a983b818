#!/bin/bash
# A batch job on one GPU node: starts a vLLM server beside the run, explains, and goes on where it stopped
# when the scheduler kills and requeues it.
#
#   sbatch pipelines/slurm.sh
#
# Hardware: one node, 2 GPUs (one for the judge, one for the subject model). Time: the subject model reads
# 10M tokens first; then about 21 LLM requests a feature.
#SBATCH --job-name=autointerp
#SBATCH --gres=gpu:2
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

SAE=${SAE:?folder or hub id of the dictionary}
CORPUS=${CORPUS:?file, folder or hub dataset}
JUDGE=${JUDGE:?model that vLLM serves}
OUT=${OUT:-outputs/$(basename "$SAE")}

CUDA_VISIBLE_DEVICES=1 vllm serve "$JUDGE" --port 8000 &
server=$!
trap 'kill "$server"' EXIT
until curl --silent --fail http://127.0.0.1:8000/health > /dev/null; do sleep 5; kill -0 "$server"; done

export OPENAI_BASE_URL=http://127.0.0.1:8000/v1
CUDA_VISIBLE_DEVICES=0 autointerp explain --sae "$SAE" --corpus "$CORPUS" --llm "openai:$JUDGE" \
    --n-features 100000 --out "$OUT" &
run=$!
# SIGTERM two minutes before the end: the run writes what is in flight and can be resumed.
trap 'kill -TERM "$run"; wait "$run"; kill "$server"' TERM
wait "$run"
