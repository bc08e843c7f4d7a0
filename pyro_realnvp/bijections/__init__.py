"""Bijections with their log-determinants: the contract, what is derived from it, and every layer.

Each layer is two methods of a :class:`~pyro_realnvp.Bijection` (or, for elementwise maps, of a
:class:`~pyro_realnvp.bijections.transformers.Transformer`) in a module that is named after its idea. These modules
import torch, Pyro, :mod:`pyro_realnvp.networks` and :mod:`pyro_realnvp._runtime`. A new layer is a class in the module
whose idea it shares, or in a module of its own; it enters ``tests/zoo.py``, and so every law.
"""
