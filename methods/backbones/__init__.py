"""One file per backbone. Files here that define `BACKBONE` are found (benchmark/pipeline/registry.py)."""
