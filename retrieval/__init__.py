"""The measured half: similarity, ranks, metrics, protocols and tables. Similarity, ranks and metrics know only arrays."""
