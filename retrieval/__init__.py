"""The measured half: similarity, ranks, metrics, protocols, tables. Similarity, ranks and metrics know only arrays."""
