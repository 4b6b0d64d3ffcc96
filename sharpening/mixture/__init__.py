"""A world of scalars, Gaussian mixtures under a reward that tilts them: the optimal policy is known in closed form."""
