"""Arrays in, numbers out: similarity, ranks, protocols, bootstrap. Nothing of ours is imported."""
