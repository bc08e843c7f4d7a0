"""Decides how a flow is being run: in which precision, over which processes, with which statistics, computed how often.

Nothing here knows a layer or a network; every module imports torch and the standard library alone, and nothing else of
the package. Users meet these modules only through the public switches in :mod:`pyro_realnvp.training` and through
:class:`~pyro_realnvp.Flow`. A new module belongs here if layers *and* networks ask it a question while they compute, or
if it prepares what both are built from.
"""
