"""The gate: is a bundle worse than its baseline, by how much, and because of which operators? Pure comparison, and its three forms of output."""
