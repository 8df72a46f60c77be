"""Verification of answers: templates, normal forms, and a comparison in worker processes that can be killed.

Imports neither torch nor, outside of the workers, sympy.
"""
