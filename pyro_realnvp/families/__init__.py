"""Families of flows, as functions that assemble layers.

A family is one module with one function ``<family>_transforms(event_shape, ...)``, which lists the layers as its paper
draws them, data -> latent, and returns what Pyro expects, latent -> data. What families share is in ``assembly``. These
modules import :mod:`pyro_realnvp.bijections`, :mod:`pyro_realnvp.networks` and what these import. A new family is a new
module here; its function is marked with ``recorded``, so that :func:`pyro_realnvp.save` knows it.
"""
