"""Talking face: lips in a video of a face that follow a given sound."""
