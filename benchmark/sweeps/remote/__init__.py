"""Trials on nodes that do not see the driver's work folder: their files go through the object store."""
