import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests begin, too; and before torch looks

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "fcurr",
    deadline=None,
    max_examples=30,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fcurr")
