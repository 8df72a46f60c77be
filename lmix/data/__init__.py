"""Data loading: a task's problems as splits and batches of prompts."""
