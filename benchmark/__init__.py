"""What a trial is and how it runs: stages, the store, the pipeline, training, inference, metrics."""
