"""Training on a GPU rehearsed without one: torch's CUDA build over a stub of CUDA (`cuda_stub.c`)."""
