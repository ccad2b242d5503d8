"""The gate: is a bundle worse than its baseline, by how much, and because of which operators? The timing, the comparison, and its three outputs."""
