"""Manifests and plans as bytes, checked when they come back."""
