"""TRL's hooks, options and batch; the only room that knows TRL's internals. Imports tasks, inspection and below."""
