#!/usr/bin/env bash
# Train on SLURM, and go on after a preemption or the time limit. The arguments are those of `lmix fit`:
#
#   sbatch --job-name=math-fixed scripts/slurm.sh --config configs/tasks/math.yaml --config configs/strategies/ddp.yaml ...
#
# Submit it from an environment with lmix, and set nodes, GPUs and time for your cluster. The job's name is the run's: the
# folder is runs/lmix/NAME, and a job of the same name resumes it. Not run under SLURM: tests/test_project_files.py runs it
# with stand-ins for srun and scontrol.
#SBATCH --job-name=lmix
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# 15 minutes before the time limit: longer than a step with its evaluation, as the run ends after the one under way
#SBATCH --signal=TERM@900
set -uo pipefail
run=runs/lmix/${SLURM_JOB_NAME:?submit this script with sbatch}
resume=()
if compgen -G "$run/checkpoints/*.ckpt" > /dev/null; then resume=(--ckpt_path="$run"); fi

# one task a GPU; if a rank dies, srun ends the others
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" python -m lmix fit "$@" \
  --trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" \
  --trainer.logger.save_dir=runs --trainer.logger.name=lmix --trainer.logger.version="$SLURM_JOB_NAME" "${resume[@]}"
status=$?
# 143: ended by SIGTERM, with the step under way saved
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
