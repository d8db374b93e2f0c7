"""How gradients move parameters: `updates` remember gradients, `plateau` listens to a metric as well."""

from fcurr.optim.plateau import PlateauState, plateau
from fcurr.optim.updates import AdamState, SGDState, adam, adamw, clipped, sgd

__all__ = ["AdamState", "PlateauState", "SGDState", "adam", "adamw", "clipped", "plateau", "sgd"]
