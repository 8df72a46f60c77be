"""Problems in batches."""
