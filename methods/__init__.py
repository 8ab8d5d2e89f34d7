"""One file a method. A file here that defines `METHOD` is found by itself (benchmark/pipeline/registry.py)."""
