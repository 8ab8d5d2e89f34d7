"""The artifact store on an object store, with a local copy on each node."""
