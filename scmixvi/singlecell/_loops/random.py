"""Random bits for compiled loops: splitmix64 (Steele et al. 2014).

numba keeps what it compiles until the file of the caller changes: what stands here must not.
"""

import numpy as np

from scmixvi.singlecell._loops.compiled import compiled

STEP = np.uint64(0x9E3779B97F4A7C15)  # from one state to the next

_u = np.uint64


@compiled()
def random_bits(state):
    """64 random bits of a state."""
    z = (state ^ (state >> _u(30))) * _u(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _u(27))) * _u(0x94D049BB133111EB)
    return z ^ (z >> _u(31))
