"""Sampling from the mixed policy."""
