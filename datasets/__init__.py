"""One file a data set. A file here that defines `DATASET` is found by itself (benchmark/pipeline/registry.py)."""
