"""What `sae-plugins train --help` says besides its flags."""

ABOUT = """\
Train a sparse autoencoder with plugins, on any SAELens architecture. With no --model_name it
trains offline on the embedded world, a small language model that comes with the package.
"""
EXAMPLES = """\
  sae-plugins train --recipe hybrid-order-demo
  sae-plugins train --recipe hybrid-order-demo --reorder.interval 50 --without input-norm-l1
  sae-plugins train --recipe hybrid-order-demo --seed 1 --output_path runs/demo-1
  sae-plugins train --plugin reorder --reorder.start 200 --model_name synthetic:toy
  sae-plugins train --recipe runs/demo-1/run.yaml --output_path runs/again   # the same, bitwise
  sae-plugins train --resume runs/demo-1                   # it was interrupted: go on, bitwise
  sae-plugins train --recipe hybrid-order-demo --dry_run   # what it needs, and how long it takes
  sae-plugins train --plugin hybrid-order --model_name gpt2 --hook_name blocks.6.hook_resid_post \\
      --dataset_path NeelNanda/pile-10k --d_sae 6144 --training_tokens 10m
"""
NOTES = """\
Ctrl-C and SIGTERM end the step in progress and write a checkpoint; a second one stops at once.
SIGUSR1 and --max_time do so to go on later: exit code 75. --go_on goes on by the same command line.
A method's settings override the defaults, a recipe's those, and flags override all of them.
Whole numbers may be written as 1e6, 100k or 2m.
"""
_OPTIONS = """\
the plugins' options:
  --MECHANISM.OPTION VALUE, as in --reorder.interval 250. `sae-plugins plugins list` shows the
  plugins, and `sae-plugins plugins show reorder` the options of one.
"""
GROUPS = {
    "run": "what to run:",
    "training": "training settings that SAELens lacks (a method may set them):",
    "options": _OPTIONS,
    "resuming": "checkpoints to go on from (SAELens' own, --n_checkpoints, are SAEs to look at):",
    "ranks": "one run on several GPUs (torchrun --nproc_per_node W --no_python sae-plugins train):",
    "dashboards": "where else the metrics of a run are shown (--log_to_wandb stands below):",
    "data": "which rows of a --dataset_path are read:",
    "caching": "activations that the next run need not compute (`sae-plugins cache` shows them):",
    "hub": "which versions are read from the Hugging Face Hub:",
    "runner": "SAELens' flags, with SAELens' defaults; the embedded world has some of its own:",
    "sae": "SAELens' flags of the SAE:",
    "synthetic": "SAELens' flags for --model_name synthetic:PRESET only:",
    "logger": "SAELens' flags of logging to Weights & Biases (off unless --log_to_wandb):",
}
