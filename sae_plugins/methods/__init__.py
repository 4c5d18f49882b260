"""The published methods: named bundles of mechanisms with their papers' settings."""
