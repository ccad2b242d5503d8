"""Text to image: captions, pictures, latents, and what judges them."""
