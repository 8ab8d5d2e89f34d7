"""From records to tables and pages. Nothing in this package imports torch."""
