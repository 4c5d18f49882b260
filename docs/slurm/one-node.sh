#!/bin/bash
# One machine with eight GPUs; torchrun starts a rank on each.
#SBATCH --job-name=sae
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00

torchrun --standalone --nproc_per_node 8 --max-restarts 2 --no_python \
    sae-plugins train --recipe hybrid-order --output_path runs/gemma --go_on --max_time 3h50m
