#!/bin/bash
# Two machines with eight GPUs each; srun starts a rank on each GPU.
#SBATCH --job-name=sae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun sae-plugins train --recipe hybrid-order --data_shards 16 --output_path runs/gemma \
    --go_on --max_time 3h50m
