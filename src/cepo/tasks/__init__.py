"""Tasks that come with cepo."""
