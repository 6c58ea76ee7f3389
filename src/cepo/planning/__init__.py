"""What a run would take, before it is started: sizes from a configuration, without weights; imports `trainer`."""
