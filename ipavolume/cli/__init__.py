"""click, and results as text and JSON. Nothing is decided here; the only importer of click."""
