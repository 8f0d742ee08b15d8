"""Side-by-side timings against peers, and what the README's tables are made from."""
