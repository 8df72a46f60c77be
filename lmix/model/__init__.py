"""The backbone, its adapters, and the streams that they make."""
