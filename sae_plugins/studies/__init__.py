"""The packaged studies: `sae-plugins study run NAME`."""
