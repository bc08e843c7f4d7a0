"""Every test is seeded, and starts with an empty parameter store and with validation on."""

import pyro
import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the laws and the Pyro tests run: cpu, cuda")
    parser.addoption("--data-root", default="data", help="folder with CIFAR-10, for the slow tests")


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)  # the first torch.compile of a process switches that of torch off
    yield
    pyro.clear_param_store()
    assert torch.get_default_dtype() == torch.float32, "a test left another default dtype behind"
