"""The automatic guide: a RealNVP over all unconstrained latents of a model."""

from __future__ import annotations

import copy
import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.nn.module import _is_module_local_param_enabled
from torch import Size, Tensor
from torch.distributions import Transform

from .._runtime.batch_statistics import hold_statistics
from .._runtime.checks import built_by
from ..bases import Base, StandardNormal
from ..bijections.bijection import Bijection
from ..bijections.chain import Chain
from ..flow import Flow
from .affine_couplings import AffineCouplings
from .angles import angles_of, learned_layer, quantiles_of
from .default_flow import default_transforms
from .fixed_mixed import FixedMixed
from .param_store import register
from .path_gradient import PathGradientDistribution
from .sites import constrained, median_or_feasible
from .start import fixed_layer, found_start, plain_start

_QUANTILE_DRAWS = 20_000

_copies = itertools.count(1)


class AutoRealNVP(AutoContinuous):
    """A guide that is a flow over all unconstrained latents of a model, each of which is transformed.

        z ~ N(0, I),   x = loc + L (shift + exp(log_scale) * f(z)),   y = biject_to(support)(x)

    with couplings f that start as the identity and learned ``shift`` and ``log_scale`` that start at 0. ``loc`` and
    ``L`` are constants found when the guide first sees the model: the Gaussian with the highest ELBO among a few that
    match the gradients of the log-density (:mod:`pyro_realnvp.inference.warm_start`). This takes a few hundred batches
    of gradients, each from one vectorised run of the model; fewer, with a warning, where that cannot be vectorised.
    Beyond 256 latents L is diagonal but for 16 directions (:class:`~pyro_realnvp.FixedLowRank`,
    :mod:`pyro_realnvp.inference.low_rank_start`), in time and memory that grow in proportion to D. SVI then starts from
    a good Gaussian in whitened coordinates, where one learning rate suits most models. With ``init_loc_fn`` or
    ``init_scale``, and for more than 256 latents with angles among them, the guide starts as N(init_loc, init_scale^2
    I) instead, L = I, and nothing is fitted beforehand; so it does, with a warning, if the search finds nothing better.
    From such a narrow start, too, the couplings stay calm (:func:`default_transforms`).

        guide = AutoRealNVP(model)
        report = fit_guide(model, guide, data)      # or
        svi = SVI(model, guide, ClippedAdam({"lr": 5e-3, "lrd": 0.999}), Trace_ELBO(32, vectorize_particles=True))

    With vectorised particles the gradient of the ELBO is that of the path of the draws alone, which vanishes as the
    guide reaches the posterior (:mod:`pyro_realnvp.inference.path_gradient`). The default couplings compute it with the
    draws (:class:`~pyro_realnvp.inference.affine_couplings.AffineCouplings`); for other transforms it costs a second
    pass. This needs no setting, and holds for other bounds, too.

    With ``base=StudentTBase`` z has heavy tails, which are learned; with ``base=partial(MixtureBase, components=4)`` it
    has several modes, on which :func:`~pyro_realnvp.fit_guide` puts its components. Hierarchies that are not centred
    are easier: see :class:`~pyro_realnvp.Recentered`.

    Angles, the latents of von Mises sites, are drawn in [-pi, pi): Pyro gives these sites the support of real numbers,
    but their densities are normalised on one turn. There the base is normal or uniform on the circle, couplings and
    networks are periodic (:class:`~pyro_realnvp.CircularSpline`, :class:`~pyro_realnvp.CoordinateFeatures`), and the
    last map scales along the circle (:mod:`pyro_realnvp.inference.fixed_mixed`).

    The flow is built by :meth:`initialize` or the first call. A state loads into a fresh guide before that. A single
    latent has nothing to be coupled with, and gets a mixture of logistics, or a spline of the circle.

    Args:
        model: a Pyro model with continuous latents.
        transforms: builds the flow: maps D to transforms latent -> data of events (D,), as the builders of this
            package do. By default :func:`default_transforms`, eight couplings; for several modes,
            ``flowpp_transforms``. For a model with angles it is called with their indices,
            ``transforms(D, circular=[...])``, as ``spline_transforms`` takes them.
        base: builds the base: maps D to a Base of events (D,) without a context. N(0, I) by default; for a model with
            angles :class:`~pyro_realnvp.MixedBase`, and one that is given is called with ``circular=[...]`` too.
        init_loc_fn: a per-site function from ``pyro.infer.autoguide.initialization``; ``init_to_median`` by default.
        init_scale: standard deviation of every unconstrained latent at the start; 0.1 by default.
        circular: names of the sites with real support that are angles: every site with a ``VonMises``,
            ``SineBivariateVonMises`` or ``SineSkewed`` distribution by default, and none with an empty list.
        name: of the guide, and of its parameters in Pyro's global store. Guides of one process whose parameters are
            in the store at the same time need different names. A guide that was saved whole by ``torch.save`` has its
            name when it is loaded; where that is taken by the first call, it goes on as ``<name>_2``, ``<name>_3``, ...

    Raises:
        ValueError: if ``init_scale`` is not positive; on the first call, if another guide of this process has
            parameters of the same name in the store, a loaded state is of another number of latents or of other angles,
            a latent site is in a plate that subsamples, or ``circular`` names no site with real support.

    Example:
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)
        >>> guide = AutoRealNVP(model)
        >>> draws = guide(torch.tensor(3.0))  # builds the flow
        >>> guide.sample_posterior((10_000,))["z"].mean(0).round(decimals=1)  # new, the guide is a good Gaussian
        tensor([1., 1.])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        transforms: Callable[[int], Iterable[Transform]] = default_transforms,
        *,
        base: Callable[[int], Base] = StandardNormal,
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float | None = None,
        circular: Iterable[str] | None = None,
        name: str | None = None,
    ) -> None:
        if init_scale is not None and not init_scale > 0:
            raise ValueError(f"init_scale must be positive, but got {init_scale}.")
        self._find_start = init_loc_fn is None and init_scale is None
        super().__init__(model, init_loc_fn=median_or_feasible if init_loc_fn is None else init_loc_fn)
        self._init_scale = 0.1 if init_scale is None else init_scale
        self._transforms, self._make_base = transforms, base
        self._circular_sites = None if circular is None else list(circular)
        self._plain_model = (model,)  # not registered as a submodule
        if name is not None:
            self._pyro_name = name
        self._origin, self._unpickled = uuid.uuid4().hex, False
        # Follows .to() and .double() before there is a flow.
        self.register_buffer("_zero", torch.zeros(()), persistent=False)
        self.transform: Chain | None = None
        self.base: Base | None = None

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Runs the model with these arguments and builds the flow; does nothing if that has happened."""
        if self.prototype_trace is None:
            if self._model is None:
                raise ValueError(
                    f"{self._pyro_name} was saved whole before it had seen its model, which is not saved with it: call "
                    f"guide.initialize(*args) before saving, or load its state_dict into AutoRealNVP(model)."
                )
            self._setup_prototype(*args, **kwargs)
            if self.master is None:
                with poutine.block():  # a call that follows creates its own
                    self._create_plates(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():  # a graph inside the prototype could not be copied
            super()._setup_prototype(*args, **kwargs)
            self._reject_subsampled_latents()
            angles = angles_of(self, self._circular_sites)
            loaded = self._flow()
            if loaded is None:
                loc = self._init_loc()
                loc = loc.to(torch.promote_types(loc.dtype, self._zero.dtype))
                loc = loc.to(self._zero.device) if self._zero.device.type != "cpu" else loc
                scale = self._init_scale
                if self._find_start:
                    self._build(*found_start(self, loc, scale, angles, args, kwargs), angles)
                else:
                    self._build(*plain_start(loc, scale, angles), angles)
            elif loaded.event_shape != (self.latent_dim,):
                raise ValueError(
                    f"The state that was loaded into {self._pyro_name} is of a guide for {loaded.event_shape[0]} "
                    f"latents, but the model has {self.latent_dim}."
                )
            elif self._angles != angles:
                raise ValueError(
                    f"The state that was loaded into {self._pyro_name} has angles at {self._angles} of its latents, "
                    f"but the model at {angles}: AutoRealNVP(..., circular=...) names the sites."
                )

    def _reject_subsampled_latents(self) -> None:
        # The one vector of latents would stand for other data in every step.
        prototype: Any = self.prototype_trace
        for name, site in prototype.iter_stochastic_nodes():
            for frame in site["cond_indep_stack"]:
                if frame.full_size is not None and frame.full_size != frame.size:
                    self.prototype_trace = None
                    raise ValueError(
                        f"The latent site {name!r} is in the plate {frame.name!r}, which takes {frame.size} of "
                        f"{frame.full_size} at a time, but {self._pyro_name} needs all latents in every call: take the "
                        f"whole plate, or give this site to another guide, as AutoNormal, in an AutoGuideList."
                    )

    def _build(self, last: Bijection, init_scale: float, angles: list[int]) -> None:
        shape, options = Size(last.event_shape), {"circular": angles} if angles else {}
        layers = list(built_by("transforms", self._transforms, shape[0], kind=Iterable, **options))
        constant = next(last.buffers())
        if layers and isinstance(layers[-1], AffineCouplings):  # which end in a learned scale and shift
            layers[-1].set_scale(init_scale)
        else:
            layers.append(learned_layer(shape, init_scale, angles))
        chain = Chain([*layers, last], shape).to(constant)
        if isinstance(last, FixedMixed) and self._make_base is StandardNormal:
            base = last.base()
        else:
            base = built_by("base", self._make_base, shape[0], kind=Base, **options)
        if base.event_shape != shape or base.context_shape is not None:
            raise ValueError(
                f"base must build a Base of events {tuple(shape)} without a context, but built one of events "
                f"{tuple(base.event_shape)} and contexts {tuple(base.context_shape or ())}."
            )
        self.transform, self.base = chain, base.to(constant)

    @property
    def _angles(self) -> list[int]:
        """Returns which latents are angles, as the last layer of the flow has it."""
        where = getattr(self._built()[-1], "coordinates", ())
        return [index for index, each in enumerate(where) if each.circular]

    def _flow(self) -> Chain | None:
        return self._modules.get("transform")  # type: ignore[return-value]  # reading a PyroModule's attribute makes Pyro statements

    def _built(self) -> Chain:
        flow = self._flow()
        if flow is None:
            raise ValueError(
                f"{self._pyro_name} has no flow yet, as it knows no model: call guide.initialize(*args) with the "
                f"arguments of the model, or load a state."
            )
        return flow

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Builds the flow of the state if there is none yet."""
        if self._flow() is None:
            start = prefix + "transform."
            parts = {int(key[len(start) :].split(".")[0]) for key in state_dict if key.startswith(start)}
            if parts:
                last = f"{start}{max(parts)}."
                constants = {key.removeprefix(last): state_dict[key] for key in state_dict if key.startswith(last)}
                circular = constants.pop("circular", torch.zeros(0)).nonzero().flatten().tolist()
                self._build(fixed_layer(circular, **constants), 1.0, circular)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _built_base(self) -> Base:
        self._built()
        return self._modules["base"]  # type: ignore[return-value]

    def get_base_dist(self) -> dist.Distribution:
        """Returns the distribution of z, of event shape (D,): by default N(0, I), and angles on the circle."""
        return self._built_base()()

    def get_transform(self, *args: Any, **kwargs: Any) -> Chain:
        """Returns z -> x, from the base to the unconstrained latents; it depends on no argument."""
        return self._built()

    @property
    def flow(self) -> Flow:
        """The density over the unconstrained latents x (D,), sharing the guide's parameters; :func:`save` takes it."""
        return Flow(self._built_base(), self._built())

    def get_posterior(self, *args: Any, **kwargs: Any) -> PathGradientDistribution:
        """Returns the distribution of the unconstrained latents x, of event shape (D,)."""
        return PathGradientDistribution(self.get_base_dist(), [self.get_transform()], validate_args=False)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws every latent site; with the arguments of the model."""
        self.initialize(*args, **kwargs)
        flow = self._built()
        if _is_module_local_param_enabled():
            _ = self.transform, self.base  # reading an attribute of a PyroModule makes the statements
        else:
            parts = {"transform": flow, "base": self._built_base()}
            self._pyro_name = register(self._pyro_name, parts, flow[-1], origin=self._origin, unpickled=self._unpickled)
        result: dict[str, Tensor] = super().forward(*args, **kwargs)
        return result

    @torch.no_grad()
    def sample_posterior(self, sample_shape: Sequence[int] = ()) -> dict[str, Tensor]:
        """Draws every latent site independently, each (\\*sample_shape, \\*shape of the site), without gradients."""
        self._built()
        if self.prototype_trace is None:
            raise ValueError(f"{self._pyro_name} knows no sites yet: call guide.initialize(*args).")
        return constrained(self, self.get_posterior().rsample(Size(sample_shape)))[0]

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Computes quantiles of every latent site, each (number of quantiles, \\*shape of the site).

        Of 20,000 draws, for every unconstrained coordinate by itself, and then mapped to the support of the site: for
        sites whose support is a product of intervals, the marginal quantiles; those of an angle are counted from the
        antipode of its circular mean. The draws are the same in every call, and unless the base is a mixture, z comes
        with -z: the median is the quantile of 0.5 exactly, and the centre of a guide that is still Gaussian.

        Args:
            quantiles: numbers between 0 and 1.
            args, kwargs: of the model, for a guide that has not seen it yet.
        """
        self.initialize(*args, **kwargs)
        base = self._built_base()
        with torch.random.fork_rng([base.zero.device] if base.zero.is_cuda else []):
            torch.manual_seed(0)
            z = base().sample((_QUANTILE_DRAWS // 2 if base.is_even else _QUANTILE_DRAWS,))
        with hold_statistics():
            x = self.get_transform()(torch.cat([z, -z]) if base.is_even else z)
        return constrained(self, quantiles_of(x, torch.as_tensor(quantiles).to(x), self._angles))[0]

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the median of every latent site, as :meth:`quantiles` computes it."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoRealNVP:
        """Copies the guide under another name, for the same model."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        shared = {"_model", "_plain_model", "master", "prototype_trace", "plates", "create_plates"}
        shared |= {"_transforms", "_make_base"}
        for key, value in self.__dict__.items():
            other.__dict__[key] = value if key in shared else copy.deepcopy(value, memo)
        other._pyro_name = f"{self._pyro_name}_copy{next(_copies)}"
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own __getstate__ also removes the model from the guide that is saved. Parameters in the store carry
        # weak references, and their copies do not.
        gone = dict.fromkeys(("_model", "_plain_model", "master"))
        return {**self.__dict__, **gone, "_modules": copy.deepcopy(self._modules)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A guide of a file that an older version wrote has no origin, and its base is N(0, I).
        older = {"_origin": uuid.uuid4().hex, "_make_base": StandardNormal}
        super().__setstate__({**older, **state, "_unpickled": True})
        flow = self._flow()
        if flow is not None and "base" not in self._modules:
            self._modules["base"] = StandardNormal(flow.event_shape).to(next(flow[-1].buffers()))
