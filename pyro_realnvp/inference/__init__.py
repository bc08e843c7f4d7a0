"""Flows inside Pyro models: the guide, what prepares and judges it, and MCMC that uses it.

``guide`` is the automatic guide; ``start`` decides where it begins, which ``warm_start`` finds for some latents and
``low_rank_start`` for many, ``path_gradient`` is its gradient, ``param_store`` its place in Pyro's global store, and
``sites`` maps between its one vector and the sites of the model. ``recentering`` changes the coordinates of
a model beforehand. ``importance`` and ``pareto`` judge any guide,
``neutra`` and ``independence`` run MCMC with one. These modules import Pyro and everything below them. A new way to use
a flow in a model is a new module here.
"""
