"""What the user edits: targets, stages, exports, devices; and what follows from them without torch: cost tables and latency estimates."""
