"""Training on the simulated GPU (`rehearsal/`): the short cases, and the simulation itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rehearsal import SHORT, stub

pytestmark = [
    pytest.mark.rehearsal,
    pytest.mark.skipif(stub.unavailable_reason() is not None, reason=str(stub.unavailable_reason())),
]
ROOT = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=stub.environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("rehearsal") / "results.json"
    process = run("-m", "rehearsal", "--short", "--output", str(file))
    assert file.exists(), process.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", SHORT)
def test_a_training_run_passes(results, name):
    """Nothing is refused, values are the CPU's, no fallback is taken, and the host seldom waits."""
    assert results[name]["faults"] == []
    assert results[name]["kernels"] > 1000


SIMULATION = """
import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from rehearsal.device import SimulatedGPU, WrongDeviceError

def gradients(device, **options):
    torch.manual_seed(0)
    qkv = [torch.randn(2, heads, 5, 8).to(device).requires_grad_() for heads in (4, 2, 2)]
    out = attention(*qkv, enable_gqa=True, **{k: v.to(device) if k == "attn_mask" else v for k, v in options.items()})
    out.square().sum().backward()
    return [out.detach().cpu(), *(part.grad.cpu() for part in qkv)]

with SimulatedGPU() as gpu:
    on_device = torch.arange(4.0, device="cuda")
    assert (on_device + 1).tolist() == [1, 2, 3, 4] and gpu.waits.total() == 1
    assert on_device.sum().item() == 6 and gpu.waits.total() == 2
    torch.tensor([1.0], device="cuda")
    on_device[[1, 2]].sum()
    assert gpu.waits.total() == 4, gpu.waits  # uploads that no dispatch mode sees
    on_device.add_(torch.ones(4).to("cuda", non_blocking=True))
    assert gpu.waits.total() == 4
    for refused in (lambda: on_device + torch.ones(4), lambda: torch.ones(4)[on_device.long()]):
        try:
            refused()
        except WrongDeviceError:
            pass
        else:
            raise AssertionError("tensors of two devices were accepted")
    assert len(gpu.refused) == 2
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    for options in ({"is_causal": True}, {"attn_mask": mask}, {}):
        for a, b in zip(gradients("cuda", **options), gradients("cpu", **options)):
            torch.testing.assert_close(a, b)
assert torch.cuda.get_device_name() == "stub of an H200"
"""


def test_the_simulation_computes_refuses_and_counts():
    process = run("-c", SIMULATION)
    assert process.returncode == 0, process.stderr[-3000:]
