"""Whether an answer is right: answer templates, normal forms, and a comparison in killable worker processes.

Imports neither torch nor, outside of its workers, sympy.
"""
