"""What training optimises."""
