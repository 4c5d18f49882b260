"""The commands of the `sae-plugins` CLI, one file each."""
