"""mcompress: compress and export mobile generative models with one command."""
