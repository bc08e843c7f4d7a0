"""Every test is seeded, and starts with an empty parameter store and with validation on.

Properties of Hypothesis run with a few examples, always the same; under ``pytest -m slow`` with 2,000 new ones each.
"""

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
slow_to_draw = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "short", max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=slow_to_draw
)
settings.register_profile(
    "long", max_examples=2000, derandomize=False, deadline=None, print_blob=True, suppress_health_check=slow_to_draw
)


def pytest_configure(config):
    settings.load_profile("long" if config.option.markexpr == "slow" else "short")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(config, items):
    for item in items:
        if config.option.markexpr == "slow" and item.path.parent.name == "fuzz":
            item.add_marker(pytest.mark.slow)


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
