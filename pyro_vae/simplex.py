"""What latents on the simplex share."""

# A Dirichlet of smaller concentration draws entries below 1e-38, where float32 ends, too often.
LEAST_CONCENTRATION = 0.1
