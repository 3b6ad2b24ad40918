"""From image files to rows of features: backbones, their weights, decoding, extraction, the store."""
