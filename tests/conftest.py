import os
import sys
import warnings
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def resettable():
    """snnTorch's `utils.reset` goes through all neurons of the process, and fails at a DeltaLeaky without membrane."""
    yield
    if "snntorch" in sys.modules:
        neurons = sys.modules["snntorch"].SpikingNeuron.instances
        neurons[:] = [n for n in neurons if getattr(n, "mem", None) is not None]


@pytest.fixture(autouse=True)
def quiet_conversion():
    """What a conversion tells is tested where it is told; elsewhere it would only be noise."""
    from ep_plugin.conversion import ConversionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where MNIST lies, in torchvision's layout."""
    place = os.environ.get("EP_PLUGIN_DATA")
    if not place or not (Path(place) / "MNIST" / "raw").is_dir():
        pytest.skip("needs MNIST: set EP_PLUGIN_DATA to a directory that holds MNIST/raw")
    return Path(place)
