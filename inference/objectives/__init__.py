"""What training optimises: one file an objective, all of them by name in `OBJECTIVES`."""
