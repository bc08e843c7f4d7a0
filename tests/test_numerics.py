"""How exact a trained image flow is in float32. Slow: pytest -m slow tests/test_numerics.py --data-root DIR"""

from functools import partial
from pathlib import Path

import pytest
import torch

from pyro_realnvp import Dequantized, Flow, Logit, ResNet, StandardNormal, realnvp_transforms

from shared.image_data import load_images


@pytest.mark.slow
def test_float32_round_trip_after_training(request: pytest.FixtureRequest, device: torch.device) -> None:
    """RealNVP with 2 scales, 32 maps, 4 blocks, after 200 steps on CIFAR-10: at most 1e-4 on the unit scale."""
    root = Path(request.config.getoption("--data-root"))
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"CIFAR-10 is not in --data-root {root}")
    train, _, test = (part.to(device) for part in load_images("cifar10", root, download=False))
    transforms = realnvp_transforms((3, 32, 32), scales=2, net=partial(ResNet, hidden=32, blocks=4))
    flow = Flow(StandardNormal((3, 32, 32)), [*transforms, Logit(0.05).inv]).to(device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(200):
        batch = train[torch.randint(len(train), (32,), device=device)]
        optimizer.zero_grad()
        loss = -Dequantized(flow.distribution()).log_prob(batch).mean() / (3072 * 0.6931471805599453)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    flow.eval()
    x = (test[:100].float() + torch.rand(100, 3, 32, 32, device=device)) / 256
    with torch.no_grad():
        z = flow.transforms.inv(x)
        back = flow.transforms(z.clone())
    error = (back - x).abs().max().item()
    print(f"bits/dim {losses[0]:.3f} -> {losses[-1]:.3f}; largest round-trip error {error:.2e}")
    assert losses[-1] < losses[0] - 1
    assert error <= 1e-4
