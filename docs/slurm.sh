#!/bin/bash
# Trains one run with reprpo, in as many Slurm jobs as its time limit requires.
#
#   sbatch docs/slurm.sh runs/mine --model Qwen/Qwen3-0.6B --dataset pairs.jsonl
#   sbatch --array=1-5 docs/slurm.sh runs/mine --dataset pairs.jsonl      # five seeds
#
# The first argument is the folder of the run, the others are flags of `reprpo run`. Two minutes
# before the time limit Slurm sends USR1 to reprpo, which writes a checkpoint and exits with 130.
# The script then puts the job back into the queue, and the same command resumes the run.
#
#SBATCH --job-name=reprpo
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u

# Put the set-up of your environment here, for example:
# source "$HOME/venv/bin/activate"
# export HF_HOME=/scratch/$USER/hf HF_HUB_OFFLINE=1

if [ $# -lt 1 ]; then
    echo "usage: sbatch slurm.sh OUT [FLAGS OF reprpo run]" >&2
    exit 2
fi
out=$1
shift
job=${SLURM_JOB_ID:-}
# In an array, each task trains the seed of its number, in a folder of its own.
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    out=$out/seed-$SLURM_ARRAY_TASK_ID
    set -- "$@" --seed "$SLURM_ARRAY_TASK_ID"
    # One task has the id of the whole array as its SLURM_JOB_ID, so it would requeue all the
    # others.
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
fi

# srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

echo "$(date): job ${job:-none}, restart ${SLURM_RESTART_COUNT:-0}, on $(hostname)"
srun reprpo run "$@" --resume auto --out "$out"
code=$?

if [ "$code" -eq 130 ]; then
    # A job that never gets as far as its first step would otherwise be requeued forever.
    if [ "${SLURM_RESTART_COUNT:-0}" -ge 100 ]; then
        echo "not requeued: the job has been restarted 100 times" >&2
        exit "$code"
    fi
    # On success, Slurm ends this script.
    scontrol requeue "$job" || echo "not requeued: submit the same command again" >&2
fi
exit "$code"
