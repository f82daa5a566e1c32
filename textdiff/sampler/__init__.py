"""Samplers: one loop from noise to text, and how it steps."""

from textdiff.sampler.given import GIVEN, Replacing, Resampling
from textdiff.sampler.ode import ODE
from textdiff.sampler.sampler import DDIM, Confidence, Predict, Renoise, Sampler
from textdiff.sampler.solver import (
    AnnealedLangevin,
    Churn,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
)

SAMPLERS: dict[str, type[Sampler]] = {
    "confidence": Confidence,
    "ancestral": Sampler,
    "ddim": DDIM,
    "renoise": Renoise,
    "churn": Churn,
    "heun": Heun,
    "dpm": DPMSolver,
    "ode": ODE,
    "sde": EulerMaruyama,
    "corrector": PredictorCorrector,
    "langevin": AnnealedLangevin,
}

__all__ = [
    "DDIM",
    "GIVEN",
    "ODE",
    "SAMPLERS",
    "AnnealedLangevin",
    "Churn",
    "Confidence",
    "DPMSolver",
    "EulerMaruyama",
    "Heun",
    "Predict",
    "PredictorCorrector",
    "Renoise",
    "Replacing",
    "Resampling",
    "Sampler",
]
