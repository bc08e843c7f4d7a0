"""Networks that compute the parameters of a coupling from the part of an event that it leaves unchanged.

A network knows nothing of flows: it maps a tensor, and a context if there is one, to a tensor. These modules import
``torch`` and :mod:`pyro_realnvp._runtime` alone. A new architecture is a new module here: a subclass of
:class:`~pyro_realnvp.networks.conditioner.Conditioner` with the constructor described there.
"""
