"""Flows inside Pyro models: the guide, what prepares and judges it, and MCMC that uses it.

``guide`` is the automatic guide; ``warm_start`` finds where it begins, ``path_gradient`` its gradient, ``param_store``
its place in Pyro's global store, and ``sites`` maps between its one vector and the sites of the model. ``importance``
and ``pareto`` judge any guide, ``neutra`` and ``independence`` run MCMC with one. These modules import Pyro and
everything below them. A new way to use a flow in a model is a new module here.
"""
