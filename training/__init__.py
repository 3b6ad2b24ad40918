"""Stage 2: from a prepared folder and a recipe to the run folder runs/RUN/."""
