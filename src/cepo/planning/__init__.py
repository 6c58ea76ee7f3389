"""What a run would take, before it is started: sizes from a model's configuration, without its weights."""
