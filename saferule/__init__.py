"""Safe-RULE: safe reinforcement unlearning, reproduced. Heavy libraries are imported by the modules that use them."""

import os

# Read when numpy, wandb (through fast-safe-rl), dsrl or Ray start, so they are set before any of these is imported. One
# OpenBLAS kernel on every processor makes lidar observations bit-identical; the others keep libraries quiet, offline.
ENVIRONMENT = {
    "OPENBLAS_CORETYPE": "Haswell",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
    "DSRL_SUPPRESS_IMPORT_ERROR": "1",
    "RAY_AUTH_MODE": "disabled",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
