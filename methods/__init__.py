"""One file per method. Files here that define `METHOD` are found (benchmark/pipeline/registry.py)."""
