"""Stage 4: from a run and images to an index, and answers from it."""
