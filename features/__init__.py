"""Stage 1, the frozen half: from images and captions to the prepared folder data/NAME/. Nothing here is trained."""
