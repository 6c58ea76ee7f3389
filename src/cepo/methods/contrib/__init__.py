"""Methods whose papers leave constants open, or that need first-error positions or another model."""
