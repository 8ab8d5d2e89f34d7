"""One file per refiner. Files here that define `REFINER` are found (benchmark/pipeline/registry.py)."""
