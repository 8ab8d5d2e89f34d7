"""One file a backbone. A file here that defines `BACKBONE` is found by itself (benchmark/pipeline/registry.py)."""
