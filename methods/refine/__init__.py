"""One file a refiner. A file here that defines `REFINER` is found by itself (benchmark/pipeline/registry.py)."""
