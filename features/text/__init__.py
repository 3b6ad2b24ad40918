"""From captions to what a text branch takes: words and stems, sentence batches, transformer encoders, their store."""
