"""The command `cepo`, sharded on CPUs: run under torchrun by test_sharding.py."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))

import shim  # noqa: F401

from cepo.cli import main

sys.exit(main())
