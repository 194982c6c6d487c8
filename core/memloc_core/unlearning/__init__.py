"""The rooms of `analyses.unlearning`: which weights may change, how they are trained, and what is watched meanwhile."""
