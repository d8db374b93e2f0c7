"""How hard a sample is: one file a family."""

from fcurr.scoring.ensembles import cross_validated_loss
from fcurr.scoring.pointwise import confidence, entropy, loss, margin

__all__ = ["confidence", "cross_validated_loss", "entropy", "loss", "margin"]
