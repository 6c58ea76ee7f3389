"""TRL's hooks, the options, TRL's batch: the only room that knows TRL's internals. Imports tasks, inspection and below."""
