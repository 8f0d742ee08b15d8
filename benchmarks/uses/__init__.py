"""What the models for missing values, counts and few data are for, measured."""
