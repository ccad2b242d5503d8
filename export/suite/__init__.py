"""The microbenchmark suite: small model files with one known operator each, from which a unit's constants are fitted."""
