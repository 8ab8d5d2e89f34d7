"""The commands of `seedbed`, one file a group. Each imports what it needs where it needs it."""
