"""Evaluation of a mixed policy: rates on held-out problems, a sweep of alpha, and comparison of two policies."""
