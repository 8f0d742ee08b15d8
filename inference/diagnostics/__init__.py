"""What a fitted pair does with its latents."""
