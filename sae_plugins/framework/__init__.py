"""Plugins, and the trainer that calls them."""
