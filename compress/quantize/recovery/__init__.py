"""Recovery of what INT8 loses: changed parameters and ranges that compute the same function with less noise."""
