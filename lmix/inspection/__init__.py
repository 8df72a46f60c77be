"""Inspection and export of a mixed policy: generation, token traces, merging and export."""
