#!/bin/bash
# A run that is longer than a job may be: five minutes before the end, Slurm tells the ranks to
# pause, and the job queues up again.
#SBATCH --job-name=sae
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun sae-plugins train --recipe hybrid-order --output_path runs/gemma --go_on
code=$?
[ $code -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
