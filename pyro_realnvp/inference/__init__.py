"""Flows inside Pyro models: the guide, what prepares and judges it, and MCMC that uses it.

``guide`` is the automatic guide; ``start`` decides where it begins, which ``warm_start`` finds for some latents and
``low_rank_start`` for many, ``path_gradient`` is its gradient, ``param_store`` its place in Pyro's global store, and
``sites`` maps between its one vector and the sites of the model. ``affine_couplings`` are its networks, ``fit_guide``
trains it, and ``guide_report`` says how far it can be trusted. ``recentering`` changes the coordinates of a model
beforehand. ``importance`` and ``pareto`` judge any guide, ``neutra`` and ``independence`` run MCMC with one, and
``for_arviz`` hands draws on to ArviZ. These modules import Pyro and everything below them, and ``arviz_base`` only when
it is called for. A new way to use
a flow in a model is a new module here.
"""
