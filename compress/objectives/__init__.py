"""What one training step computes: objectives for the one training loop, `mcompress.compress.train.train`, one per file.

Each objective names its players (trained modules) and gives the weighted loss terms of each on the present batch.
"""
