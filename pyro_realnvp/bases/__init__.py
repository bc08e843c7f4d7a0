"""Base distributions of a flow, as Modules.

``base`` is the contract; the others are named after what is drawn. A base returns a Pyro distribution when it is called
with a context or None. These modules import :mod:`pyro_realnvp.bijections` (for supports),
:mod:`pyro_realnvp.networks`, :mod:`pyro_realnvp._runtime`, torch and Pyro. A new base is a class in the module whose
idea it shares, or in a module of its own, marked with ``recorded`` so that :func:`pyro_realnvp.save` knows it; it
enters ``tests/bases/test_bases.py``, and so what every base is held to.
"""

from .base import Base
from .independent import DiagonalNormal, StandardLogistic, StandardNormal
from .mixed import MixedBase
from .mixture import MixtureBase
from .student import StudentTBase

__all__ = ["Base", "DiagonalNormal", "MixedBase", "MixtureBase", "StandardLogistic", "StandardNormal", "StudentTBase"]
